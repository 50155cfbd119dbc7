"""Networks of blocks that are no stack of equal layers: ResNet, ConvNeXt, MobileNet, Swin and their kin.

Blocks stand in stages; from one stage to the next there are fewer places and more channels, so a block cannot be left
out or swapped with any other. Which modules they are is read off the config's `depths`, not off a family's names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from infra.errors import StageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class NetworkStage:
    """One stage by its name in the model: what it gives is [B, C, H, W]. blocks: their names, from the bottom up."""

    name: str
    blocks: list[str]


def is_staged(model: PreTrainedModel) -> bool:
    """Whether the model is a network of blocks, and has no stack of as many equal layers as its config says."""
    if getattr(model.config, "depths", None):
        return True
    layers = getattr(model.config, "num_hidden_layers", None)
    modules = list(model.modules())
    stacked = layers is not None and any(isinstance(m, nn.ModuleList) and len(m) == layers for m in modules)
    return not stacked and any(isinstance(module, nn.Conv2d) for module in modules)


def network_stages(model: PreTrainedModel) -> list[NetworkStage]:
    """The stages from the bottom up. Where a config has no `depths` (MobileNet), each block is a stage of its own.

    Raises StageError if it is unknown which they are.
    """
    depths = list(getattr(model.config, "depths", None) or ())
    for name, found in _outermost(model):
        children = [(f"{name}.{child}", module) for child, module in found.named_children()]
        if not depths:
            if any(isinstance(module, nn.Conv2d) for module in found.modules()):
                return [NetworkStage(child, [child]) for child, _ in children]
        elif len(children) == len(depths):
            blocks = [_blocks(child, module, depth) for (child, module), depth in zip(children, depths, strict=True)]
            if all(blocks):
                return [NetworkStage(child, inside) for (child, _), inside in zip(children, blocks, strict=True)]
    raise StageError(
        f"it is unknown which parts of {type(model).__name__} are its blocks",
        hint="Known are models with a stack of equal layers, and those whose stages of blocks are as long as the "
        "`depths` of their config.",
    )


def _outermost(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Lists of modules that lie in no other, with their names."""
    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and not any(name.startswith(f"{o}.") for o in found):
            found.append(name)
            yield name, module


def _blocks(name: str, stage: nn.Module, depth: int) -> list[str]:
    """Names of the blocks of a stage: the list of so many modules of one class. Empty where there is none."""
    for inside, found in _outermost(stage):
        children = list(found.children())
        if len(children) == depth and len({type(child) for child in children}) == 1:
            return [f"{name}.{inside}.{child}" if inside else f"{name}.{child}" for child, _ in found.named_children()]
    return []


def staged_depths(model: PreTrainedModel, names: Iterable[str]) -> dict[str, int]:
    """Depth of each name, which stand in the model's order: 0 before the first stage, blocks from 1 on, then the top.

    What stands in a stage before its first block (a convolution with a stride) goes with that block.
    """
    stages = network_stages(model)
    top = sum(len(stage.blocks) for stage in stages) + 1
    found, below = {}, 0
    number = {block: i + 1 for i, block in enumerate(block for stage in stages for block in stage.blocks)}
    for name in names:
        block = next((number[b] for b in number if name == b or name.startswith(f"{b}.")), None)
        in_stage = any(name.startswith(f"{stage.name}.") for stage in stages)
        if block is not None:
            below = block
        elif in_stage:
            block = below + 1
        else:
            block = top if below else 0
        found[name] = min(block, top)
    return found
