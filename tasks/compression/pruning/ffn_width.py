"""Structured pruning of feed-forward width: whole neurons leave, so that the model is smaller for every runtime.

A transformer's feed-forward block maps hidden -> intermediate (one projection, or a gate and an up projection) and back
(the down projection). Neuron j is column j going in and row j coming out; removing the same number in every layer
leaves a model that its own config describes, with a smaller `intermediate_size`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from infra.errors import StageError
from tasks.compression.pruning.calibration import Batch
from tasks.compression.pruning.gates import gate_importance
from tasks.models.structure.transformer import layer_stacks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.objective import Objective

# How Hugging Face configs call the feed-forward width.
WIDTH_FIELDS = ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "hidden_dim")
STACK_WIDTH_FIELDS = ("encoder_ffn_dim", "decoder_ffn_dim")
MULTIPLE = 8


@dataclass(frozen=True)
class FeedForward:
    """One layer's block by module name: projections into the neurons, and the one out of them.

    field: that of the config which holds the block's width.
    """

    inward: list[str]
    outward: str
    field: str


def width_fields(model: PreTrainedModel, stacks: int) -> list[str]:
    """For each stack of layers the config field with its feed-forward width. StageError for an unknown family."""
    if stacks == 2 and all(hasattr(model.config, name) for name in STACK_WIDTH_FIELDS):
        return list(STACK_WIDTH_FIELDS)
    for name in WIDTH_FIELDS:
        if hasattr(model.config, name):
            return [name] * stacks
    raise StageError(
        f"the config of {type(model).__name__} names no feed-forward width",
        hint=f"Looked for: {', '.join((*WIDTH_FIELDS, *STACK_WIDTH_FIELDS))}.",
    )


def find_feed_forwards(model: PreTrainedModel) -> list[FeedForward]:
    """The feed-forward block of every layer, found by shape outside the attention, not by a family's names."""
    stacks = layer_stacks(model)
    fields = width_fields(model, len(stacks))
    hidden = model.config.hidden_size
    blocks = []
    layers = [
        (f"{stack}.{index}", layer, field)
        for (stack, modules), field in zip(stacks, fields, strict=True)
        for index, layer in enumerate(modules.children())
    ]
    for place, layer, field in layers:
        linears = {
            f"{place}.{name}": _shape(module)
            for name, module in layer.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and "attn" not in name.lower() and "attention" not in name.lower()
        }
        outward = [name for name, (_, out) in linears.items() if out == hidden][-1:]
        width = linears[outward[0]][0] if outward else None
        inward = [name for name, shape in linears.items() if shape == (hidden, width) and name not in outward]
        if not inward:
            raise StageError(
                f"{place} of {type(model).__name__} has no feed-forward block of the known form",
                hint="It needs projections hidden -> width and one back; mixtures of experts are not supported.",
            )
        blocks.append(FeedForward(inward, outward[0], field))
    return blocks


def _shape(module: nn.Module) -> tuple[int, int]:
    """(features in, features out)."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = module.get_parameter("weight")
    return weight.shape[0], weight.shape[1]


def neuron_importance(model: PreTrainedModel, batches: Iterable[Batch], objective: Objective) -> list[torch.Tensor]:
    """Per layer [width]: how far the loss would move without each neuron (`tasks/compression/pruning/gates.py`)."""
    return gate_importance(model, batches, objective, [block.outward for block in find_feed_forwards(model)])


def pruned(model: PreTrainedModel, importance: list[torch.Tensor], keep: float) -> PreTrainedModel:
    """A new model with the most important share `keep` of each layer's neurons, a multiple of 8 and at least 8.

    Raises StageError if nothing would be removed.
    """
    blocks = find_feed_forwards(model)
    config = copy.deepcopy(model.config)
    kept = {}
    for block, score in zip(blocks, importance, strict=True):
        width = len(score)
        kept[block.field] = min(width, max(MULTIPLE, round(keep * width / MULTIPLE) * MULTIPLE))
        if kept[block.field] == width:
            raise StageError(
                f"keep {keep} leaves all {width} neurons of a layer",
                where="keep",
                hint=f"Widths go in steps of {MULTIPLE}: use at most {1 - MULTIPLE / width:.3f}.",
            )
        setattr(config, block.field, kept[block.field])
    smaller: PreTrainedModel = type(model)(config).train(False)
    modules = dict(model.named_modules())
    state = dict(model.state_dict())
    for block, score in zip(blocks, importance, strict=True):
        # Kept neurons stay in their order, so that equal scores give equal bytes.
        chosen = torch.sort(torch.argsort(score, descending=True, stable=True)[: kept[block.field]]).values
        for name in (*block.inward, block.outward):
            module, inward = modules[name], name != block.outward
            weight = state[f"{name}.weight"]
            # nn.Linear stores [out, in], Conv1D [in, out].
            axis = int(inward) if isinstance(module, Conv1D) else int(not inward)
            state[f"{name}.weight"] = weight.index_select(axis, chosen)
            if inward and state.get(f"{name}.bias") is not None:
                state[f"{name}.bias"] = state[f"{name}.bias"].index_select(0, chosen)
    smaller.load_state_dict(state)
    return smaller
