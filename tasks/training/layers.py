"""How deep in a model each parameter lies: embeddings at 0, the layers from 1 on, what reads the last one on top."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from infra.errors import StageError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

COUNTS = ("num_hidden_layers", "num_layers", "num_decoder_layers")


def layer_stacks(model: PreTrainedModel) -> dict[str, torch.nn.ModuleList]:
    """The stacks of layers by module name, in the order in which they are run; two where there is a decoder too.

    Raises StageError for a model without one: no list of modules is as long as its config says.
    """
    from torch.nn import ModuleList

    counts = {int(value) for name in COUNTS if isinstance(value := getattr(model.config, name, None), int)}
    found: dict[str, ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, ModuleList) and len(module) in counts and not inside:
            found[name] = module
    if not found:
        raise StageError(
            f"{type(model).__name__} has no stack of layers",
            hint=f"Its config counts {sorted(counts)} layers, and no list of modules is that long.",
        )
    return found


def depths(model: PreTrainedModel) -> dict[str, int]:
    """Depth of every parameter by name. What stands before the first stack is 0, what stands after one is on top.

    In an encoder-decoder the decoder's layers lie above the encoder's.
    """
    stacks = layer_stacks(model)
    below = {name: sum(map(len, list(stacks.values())[:i])) for i, name in enumerate(stacks)}
    top = sum(map(len, stacks.values())) + 1
    layer = re.compile(rf"({'|'.join(map(re.escape, stacks))})\.(\d+)\.")
    found, before = {}, True
    for name, _ in model.named_parameters():
        if inside := layer.match(name):
            found[name], before = below[inside[1]] + int(inside[2]) + 1, False
        else:
            found[name] = 0 if before else top
    return found
