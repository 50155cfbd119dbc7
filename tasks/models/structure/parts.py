"""Which parts a model has: its layers or blocks, how deep each parameter lies, and the matrices in them.

Asked here by all that freezes, prunes, distils or adapts. `layer_stacks` has the stacks of equal layers, for what takes
whole layers out; `network_stages` the stages of a network of blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn
from transformers.pytorch_utils import Conv1D

from tasks.models.structure.staged import is_staged, network_stages, staged_depths
from tasks.models.structure.transformer import layer_stacks, transformer_depths

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Matrix = nn.Linear | Conv1D | nn.Conv2d
"""Modules whose weight multiplies; a convolution's is one of [out, in x height x width]."""


def layer_names(model: PreTrainedModel) -> list[str]:
    """The layers or blocks by name, from the bottom up; of an encoder-decoder the encoder's, then the decoder's.

    Raises StageError if it is unknown which they are.
    """
    if is_staged(model):
        return [block for stage in network_stages(model) for block in stage.blocks]
    return [f"{stack}.{i}" for stack, layers in layer_stacks(model) for i in range(len(layers))]


def compared_parts(model: PreTrainedModel) -> list[tuple[str, nn.Module, int]]:
    """The parts whose outputs a student and its teacher are compared by: name, module, and how wide its output is.

    Of a network of blocks its stages, which give [B, C, H, W]; else the layers of the first stack, [B, T, H].
    """
    if not is_staged(model):
        (stack, layers), *_ = layer_stacks(model)
        return [(f"{stack}.{i}", layer, model.config.hidden_size) for i, layer in enumerate(layers)]
    stages = [(stage.name, model.get_submodule(stage.name)) for stage in network_stages(model)]
    return [(name, stage, _width(stage)) for name, stage in stages]


def _width(stage: nn.Module) -> int:
    """Of what the last matrix in it gives: a block ends with one."""
    *_, last = (module for module in stage.modules() if isinstance(module, nn.Linear | nn.Conv2d))
    return int(last.weight.shape[0])


def depths(model: PreTrainedModel) -> dict[str, int]:
    """Depth of every parameter by name: 0 before the first layer or block, these from 1 on, what reads the last on top.

    In an encoder-decoder the decoder's layers lie above the encoder's.
    """
    names = [name for name, _ in model.named_parameters()]
    return staged_depths(model, names) if is_staged(model) else transformer_depths(model, names)


def matrices(model: PreTrainedModel) -> list[dict[str, Matrix]]:
    """For each layer or block, from the bottom up, the modules that multiply by a matrix, by their names in the model.

    Not among them: embeddings and heads, which are read by index, or small; the first convolution of a network of
    blocks, which reads few channels; and convolutions of one channel each, which have few weights and need them all.
    """
    found: dict[int, dict[str, Matrix]] = {}
    for place, name, module in _inside(model):
        group = found.setdefault(place, {})
        if isinstance(module, nn.Linear | Conv1D) or (isinstance(module, nn.Conv2d) and not _by_channel(module)):
            group[name] = module
    return [found[place] for place in sorted(found)]


def _inside(model: PreTrainedModel) -> Iterator[tuple[int, str, nn.Module]]:
    """Modules within layers or blocks: number of the layer, name, module."""
    modules = dict(model.named_modules())
    if is_staged(model):
        depth = staged_depths(model, modules)
        top = max(depth.values())
        yield from ((depth[name], name, module) for name, module in modules.items() if 0 < depth[name] < top)
        return
    for place, layer in enumerate(layer_names(model)):
        yield from ((place, f"{layer}.{name}", module) for name, module in modules[layer].named_modules() if name)


def _by_channel(module: nn.Conv2d) -> bool:
    return module.groups > 1 and module.in_channels == module.groups
