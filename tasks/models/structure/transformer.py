"""Stacks of equal layers: transformers, of texts or of pictures, encoder and decoder alike."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from infra.errors import StageError
from tasks.models.structure.staged import is_staged

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEPTHS = (("num_hidden_layers", "num_layers", "encoder_layers"), ("num_decoder_layers", "decoder_layers"))
"""How Hugging Face configs call the depth of an encoder (or of a model with one stack), and that of a decoder."""


def layer_stacks(model: PreTrainedModel) -> list[tuple[str, torch.nn.ModuleList]]:
    """Name and list of the model's layers; of an encoder-decoder its encoder's, then its decoder's.

    Raises StageError if it is unknown which they are, or if the model is a network of blocks.
    """
    if is_staged(model):
        raise StageError(
            f"{type(model).__name__} has no stack of equal layers: its blocks differ in width and stride",
            hint="No whole layer can leave it. `method: channels` of a prune stage makes it narrower; a distill stage "
            "takes another model as its `student`.",
        )
    if not model.config.is_encoder_decoder:
        return [_stack(model, "", model, model.config.num_hidden_layers)]
    names = {id(module): name for name, module in model.named_modules()}
    part_of: Any = model  # untyped there
    decoder = next((field for field in DEPTHS[1] if hasattr(model.config, field)), "num_hidden_layers")
    return [
        _stack(model, f"{names[id(part)]}.", part, getattr(model.config, field))
        for part, field in ((part_of.get_encoder(), "num_hidden_layers"), (part_of.get_decoder(), decoder))
    ]


def _stack(model: PreTrainedModel, prefix: str, part: torch.nn.Module, count: int) -> tuple[str, torch.nn.ModuleList]:
    """The one ModuleList of a part that is as long as the config says."""
    stacks = [
        (prefix + name, module)
        for name, module in part.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    outer = [s for s in stacks if not any(s[0].startswith(f"{other[0]}.") for other in stacks if other is not s)]
    if len(outer) != 1:
        raise StageError(
            f"it is unknown which part of {type(model).__name__} is its stack of {count} layers",
            hint="Only models with one stack of layers, or one in an encoder and one in a decoder, can be cut. Layers "
            "that are the same weights over and over (ALBERT) cannot: what leaves one leaves all.",
        )
    return outer[0]


def transformer_depths(model: PreTrainedModel, names: Iterable[str]) -> dict[str, int]:
    """Depth of each name, which stand in the model's order. Before the first stack it is 0, after one it is the top's.

    In an encoder-decoder the decoder's layers lie above the encoder's.
    """
    stacks = dict(layer_stacks(model))
    below = {name: sum(map(len, list(stacks.values())[:i])) for i, name in enumerate(stacks)}
    top = sum(map(len, stacks.values())) + 1
    layer = re.compile(rf"({'|'.join(map(re.escape, stacks))})\.(\d+)\.")
    found, before = {}, True
    for name in names:
        if inside := layer.match(name):
            found[name], before = below[inside[1]] + int(inside[2]) + 1, False
        else:
            found[name] = 0 if before else top
    return found
