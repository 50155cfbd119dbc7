"""A model with some of its layers, as its own class and config describe it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.models.structure.transformer import DEPTHS, layer_stacks

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def with_layers(model: PreTrainedModel, layers: Sequence[Sequence[int]]) -> PreTrainedModel:
    """A new model with these layers of each stack, weights included, in this order."""
    stacks = layer_stacks(model)
    smaller = type(model)(_config(model.config, layers))
    renumber = {
        f"{name}.{old}.": f"{name}.{new}."
        for (name, _), chosen in zip(stacks, layers, strict=True)
        for new, old in enumerate(chosen)
    }
    given, state = model.state_dict(), {}
    for name, value in given.items():
        stack = next((stack for stack, _ in stacks if name.startswith(f"{stack}.")), None)
        if stack is not None:
            prefix = f"{stack}.{name[len(stack) + 1 :].partition('.')[0]}."
            if prefix not in renumber:
                continue
            name = renumber[prefix] + name[len(prefix) :]
        state[name] = value
    # What only a stack's first layer has (T5's biases of relative positions, which all of them use) stays there.
    state |= {name: given[name] for name in smaller.state_dict().keys() - state.keys() if name in given}
    smaller.load_state_dict(state)
    return smaller


def _config(config: PreTrainedConfig, layers: Sequence[Sequence[int]]) -> PreTrainedConfig:
    """The config with only these layers of each stack, per-layer lists included."""
    smaller = copy.deepcopy(config)
    count = config.num_hidden_layers
    for name, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == count and name.endswith(("_types", "_layers", "_layer")):
            setattr(smaller, name, [value[i] for i in layers[0]])
    for chosen, fields in zip(layers, DEPTHS if len(layers) > 1 else (DEPTHS[0][:1],), strict=True):
        for name in fields:
            if hasattr(smaller, name):
                setattr(smaller, name, len(chosen))
    return smaller
