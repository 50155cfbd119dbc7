"""Knowledge distillation: the loss that pulls a student to its teacher, and a student cut from the teacher's layers."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from infra.errors import StageError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def distillation(logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 * KL(teacher || student) at temperature T, summed over the rows of logits [N, C] (Hinton et al., 2015).

    T^2 keeps the gradient's size independent of T. Accumulated in fp32.
    """
    student = F.log_softmax(logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="sum", log_target=True) * temperature**2


def chosen_layers(teacher_layers: int, student_layers: int) -> list[int]:
    """Teacher layers a student starts from: evenly spaced, the last included (the head reads its output)."""
    if not 1 <= student_layers <= teacher_layers:
        raise StageError(
            f"a student of {student_layers} layers cannot be cut from a teacher of {teacher_layers}",
            where="layers",
            hint=f"Choose 1 to {teacher_layers}.",
        )
    return [(i + 1) * teacher_layers // student_layers - 1 for i in range(student_layers)]


DEPTHS = (("num_hidden_layers", "num_layers", "encoder_layers"), ("num_decoder_layers", "decoder_layers"))
"""How Hugging Face configs call the depth of an encoder (or of a model with one stack), and that of a decoder."""


def layer_stacks(model: PreTrainedModel) -> list[tuple[str, torch.nn.ModuleList]]:
    """Name and list of the model's layers; of an encoder-decoder its encoder's, then its decoder's.

    Raises StageError if it cannot be told which they are.
    """
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
            f"cannot tell which part of {type(model).__name__} is its stack of {count} layers",
            hint="Only models with one stack of layers, or one in an encoder and one in a decoder, can be cut.",
        )
    return outer[0]


def student_config(config: PreTrainedConfig, layers: list[list[int]]) -> PreTrainedConfig:
    """The teacher's config with only these layers of each stack, per-layer lists included."""
    student = copy.deepcopy(config)
    count = config.num_hidden_layers
    for name, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == count and name.endswith(("_types", "_layers", "_layer")):
            setattr(student, name, [value[i] for i in layers[0]])
    for chosen, fields in zip(layers, DEPTHS if len(layers) > 1 else (DEPTHS[0][:1],), strict=True):
        for name in fields:
            if hasattr(student, name):
                setattr(student, name, len(chosen))
    return student


def student_from(teacher: PreTrainedModel, num_layers: int) -> PreTrainedModel:
    """A copy of the teacher with `num_layers` of its layers, weights included; of an encoder-decoder so many of each.

    A stack that has fewer stays whole, as long as the other has enough.
    """
    stacks = layer_stacks(teacher)
    deepest = max(len(stack) for _, stack in stacks)
    layers = [
        chosen_layers(n, min(num_layers, n) if num_layers <= deepest else num_layers) for n in map(_length, stacks)
    ]
    student = type(teacher)(student_config(teacher.config, layers))
    renumber = {
        f"{name}.{old}.": f"{name}.{new}."
        for (name, _), chosen in zip(stacks, layers, strict=True)
        for new, old in enumerate(chosen)
    }
    given, state = teacher.state_dict(), {}
    for name, value in given.items():
        stack = next((stack for stack, _ in stacks if name.startswith(f"{stack}.")), None)
        if stack is not None:
            prefix = f"{stack}.{name[len(stack) + 1 :].partition('.')[0]}."
            if prefix not in renumber:
                continue
            name = renumber[prefix] + name[len(prefix) :]
        state[name] = value
    # What only a stack's first layer has (T5's biases of relative positions, which all of them use) stays there.
    state |= {name: given[name] for name in student.state_dict().keys() - state.keys() if name in given}
    student.load_state_dict(state)
    return student


def _length(stack: tuple[str, torch.nn.ModuleList]) -> int:
    return len(stack[1])
