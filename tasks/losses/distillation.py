"""The loss that pulls the outputs of a student to those of its teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tasks.losses.top_k import TopK


def distillation(
    logits: torch.Tensor,
    teacher_logits: torch.Tensor | TopK,
    temperature: float,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """T^2 * KL(teacher || student) at temperature T, summed over the rows of logits [N, C] (Hinton et al., 2015).

    weights: how much each row counts, [N]; None: one. T^2 keeps the gradient's size independent of T. Accumulated in
    fp32. Of a teacher's largest logits, over these and the rest together (`tasks/losses/top_k.py`).
    """
    if isinstance(teacher_logits, TopK):
        own, given = teacher_logits.both(logits.float(), temperature)
    else:
        own, given = logits.float() / temperature, teacher_logits.float() / temperature
    student, teacher = F.log_softmax(own, dim=-1), F.log_softmax(given, dim=-1)
    if weights is None:
        return F.kl_div(student, teacher, reduction="sum", log_target=True) * temperature**2
    rows = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return (rows * weights).sum() * temperature**2


def two_way_distillation(logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """`distillation` where each logit is a choice of its own between yes (its sigmoid) and no, summed over all."""
    student, teacher = logits.float().flatten(), teacher_logits.float().flatten()
    # A sigmoid is the softmax of (x, 0).
    return distillation(F.pad(student[:, None], (0, 1)), F.pad(teacher[:, None], (0, 1)), temperature)
