"""How much a model would miss parts of what goes into a projection: neurons, or heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tasks.compression.calibration import Batch
from tasks.training.model_inputs import model_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.objectives import Objective


def gate_importance(
    model: PreTrainedModel, batches: Iterable[Batch], objective: Objective, outward: Sequence[str], width: int = 1
) -> list[torch.Tensor]:
    """For each module named in `outward`, [inputs / width]: how far the loss would move without each part of its input.

    To first order (Molchanov et al., 2019): with a gate z = 1 on a part, dL/dz of one example is the sum over tokens
    and the part's `width` places of activation x gradient; the importance is the sum of its square over examples.
    """
    modules = dict(model.named_modules())
    activations: dict[int, torch.Tensor] = {}
    scores: list[torch.Tensor | float] = [0.0] * len(outward)

    def keep(place: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            activations[place] = inputs[0]

        return hook

    hooks = [modules[name].register_forward_pre_hook(keep(i)) for i, name in enumerate(outward)]
    try:
        model.train(False)
        for batch in batches:
            total, _ = objective.loss(objective.output(model(**model_inputs(batch, model))), batch)
            ordered = [activations[i] for i in range(len(outward))]
            gradients = torch.autograd.grad(total, ordered)
            for i, (activation, gradient) in enumerate(zip(ordered, gradients, strict=True)):
                slopes = (activation * gradient).detach().double().sum(1)
                slopes = slopes.reshape(len(slopes), -1, width).sum(-1)
                scores[i] = scores[i] + slopes.square().sum(0)
    finally:
        for handle in hooks:
            handle.remove()
    return [score for score in scores if isinstance(score, torch.Tensor)]
