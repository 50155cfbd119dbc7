"""Do the tasks of one training pull the shared weights the same way? (Yu et al., 2020, "Gradient Surgery")

Two gradients conflict where their cosine is below zero: a step that lowers the one loss raises the other, to first
order. Norms beside it show which task decides the direction of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from tasks.objective import Feature

if TYPE_CHECKING:
    from tasks.training.multitask.model import MultitaskModel
    from tasks.training.multitask.objective import Multitask

EXAMPLES = 32
AT_ONCE = 8


def conflict(gradients: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """{"tasks", "norms", "cosine": [K][K], "conflicting": share of the pairs of tasks whose cosine is below zero}.

    gradients: of each task, flat and of one size. The cosine with a gradient of zeros is 0.
    """
    norms = {task: float(gradient.double().norm()) for task, gradient in gradients.items()}

    def cosine(one: str, other: str) -> float:
        size = norms[one] * norms[other]
        return float(gradients[one].double() @ gradients[other].double()) / size if size else 0.0

    tasks = list(gradients)
    matrix = [[1.0 if one == other else cosine(one, other) for other in tasks] for one in tasks]
    pairs = [matrix[i][j] for i in range(len(tasks)) for j in range(i)]
    share = sum(value < 0 for value in pairs) / len(pairs) if pairs else 0.0
    return {"tasks": tasks, "norms": list(norms.values()), "cosine": matrix, "conflicting": share}


def measured_conflict(
    model: MultitaskModel, objective: Multitask, features: Mapping[str, Sequence[Feature]]
) -> dict[str, Any]:
    """`conflict` of the mean losses of up to 32 training examples a task, spread evenly over its split; no dropout.

    model: whole, on the CPU. Its gradients are left as they were, and so is torch's random state.
    """
    trunk = [parameter for parameter in model.trunk.parameters() if parameter.requires_grad]
    training = model.training
    model.train(False)
    try:
        found = {}
        for task, examples in features.items():
            found[task] = _gradient(trunk, _losses(model, objective, task, examples))
        return conflict(found)
    finally:
        model.train(training)


def _losses(
    model: MultitaskModel, objective: Multitask, task: str, examples: Sequence[Feature]
) -> list[Callable[[], tuple[torch.Tensor, float]]]:
    """(summed loss, units) of each micro-batch, when it is asked for."""
    own = objective.tasks[task]
    count = min(EXAMPLES, len(examples))
    places = [i * len(examples) // count for i in range(count)]
    chosen = [own.noised(examples[place], place) for place in places]

    def of(start: int) -> tuple[torch.Tensor, float]:
        batch = own.collate(chosen[start : start + AT_ONCE])
        loss, units = own.loss(own.read(model.task_output(task, batch)), batch)
        return loss, float(units)

    return [lambda start=start: of(start) for start in range(0, count, AT_ONCE)]  # type: ignore[misc]


def _gradient(
    parameters: Sequence[torch.nn.Parameter], losses: Sequence[Callable[[], tuple[torch.Tensor, float]]]
) -> torch.Tensor:
    """Of the mean loss, flat; zeros for weights that a task does not use."""
    total, all_units = [torch.zeros_like(p) for p in parameters], 0.0
    for compute in losses:
        loss, units = compute()
        found = torch.autograd.grad(loss, parameters, allow_unused=True) if parameters else ()
        for kept, gradient in zip(total, found, strict=True):
            if gradient is not None:
                kept += gradient
        all_units += units
    flat = torch.cat([kept.flatten() for kept in total]) if total else torch.zeros(0)
    return flat / (all_units or 1.0)
