"""Knowledge distillation: the loss that pulls a student to its teacher, and a student cut from the teacher's layers."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from infra.errors import StageError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def distillation(
    logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """T^2 * KL(teacher || student) at temperature T, summed over the rows of logits [N, C] (Hinton et al., 2015).

    weights: how much each row counts, [N]; None: one. T^2 keeps the gradient's size independent of T. Accumulated in
    fp32.
    """
    student = F.log_softmax(logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    if weights is None:
        return F.kl_div(student, teacher, reduction="sum", log_target=True) * temperature**2
    rows = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return (rows * weights).sum() * temperature**2


def two_way_distillation(logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """`distillation` where each logit is a choice of its own between yes (its sigmoid) and no, summed over all."""
    student, teacher = logits.float().flatten(), teacher_logits.float().flatten()
    # A sigmoid is the softmax of (x, 0).
    return distillation(F.pad(student[:, None], (0, 1)), F.pad(teacher[:, None], (0, 1)), temperature)


def chosen_layers(teacher_layers: int, student_layers: int) -> list[int]:
    """Teacher layers a student starts from: evenly spaced, the last included (the head reads its output)."""
    if not 1 <= student_layers <= teacher_layers:
        raise StageError(
            f"a student of {student_layers} layers cannot be cut from a teacher of {teacher_layers}",
            where="layers",
            hint=f"Choose 1 to {teacher_layers}.",
        )
    return [(i + 1) * teacher_layers // student_layers - 1 for i in range(student_layers)]


def layer_stack(model: PreTrainedModel) -> tuple[str, torch.nn.ModuleList]:
    """Name and list of the model's layers: the one ModuleList as long as its config says, else StageError."""
    count = model.config.num_hidden_layers
    stacks = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    outer = [s for s in stacks if not any(s[0].startswith(f"{other[0]}.") for other in stacks if other is not s)]
    if len(outer) != 1:
        raise StageError(
            f"cannot tell which part of {type(model).__name__} is its stack of {count} layers",
            hint="Only models with one stack of layers can be cut: decoders or encoders, not both.",
        )
    return outer[0]


def student_config(config: PreTrainedConfig, layers: list[int]) -> PreTrainedConfig:
    """The teacher's config with only these layers, per-layer lists included."""
    student = copy.deepcopy(config)
    count = config.num_hidden_layers
    for name, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == count and name.endswith(("_types", "_layers", "_layer")):
            setattr(student, name, [value[i] for i in layers])
    student.num_hidden_layers = len(layers)
    return student


def student_from(teacher: PreTrainedModel, num_layers: int) -> PreTrainedModel:
    """A copy of the teacher with `num_layers` of its layers, weights included."""
    layers = chosen_layers(teacher.config.num_hidden_layers, num_layers)
    student = type(teacher)(student_config(teacher.config, layers))
    stack, _ = layer_stack(teacher)
    renumber = {f"{stack}.{old}.": f"{stack}.{new}." for new, old in enumerate(layers)}
    state = {}
    for name, value in teacher.state_dict().items():
        if name.startswith(f"{stack}."):
            prefix = f"{stack}.{name[len(stack) + 1 :].partition('.')[0]}."
            if prefix not in renumber:
                continue
            name = renumber[prefix] + name[len(prefix) :]
        state[name] = value
    student.load_state_dict(state)
    return student
