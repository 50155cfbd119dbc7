"""How much a model would miss parts of what goes into a projection: neurons, or heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from tasks.compression.pruning.calibration import Batch, inputs_given_to
from tasks.models.inputs import model_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.objective import Objective


def gate_importance(
    model: PreTrainedModel, batches: Iterable[Batch], objective: Objective, outward: Sequence[str], width: int = 1
) -> list[torch.Tensor]:
    """For each module named in `outward`, [inputs / width]: how far the loss would move without each part of its input.

    To first order (Molchanov et al., 2019): with a gate z = 1 on a part, dL/dz of one example is the sum over tokens
    and the part's `width` places of activation x gradient; the importance is the sum of its square over examples.
    """
    modules = dict(model.named_modules())
    activations: dict[str, torch.Tensor] = {}
    scores: dict[str, torch.Tensor] = {}
    with inputs_given_to({name: modules[name] for name in outward}, activations.__setitem__):
        model.train(False)
        for batch in batches:
            total, _ = objective.loss(objective.read(model(**model_inputs(batch, model))), batch)
            gradients = torch.autograd.grad(total, [activations[name] for name in outward])
            for name, gradient in zip(outward, gradients, strict=True):
                slopes = (activations[name] * gradient).detach().double().sum(1)
                squares = slopes.reshape(len(slopes), -1, width).sum(-1).square().sum(0)
                scores[name] = scores[name] + squares if name in scores else squares
    return list(scores.values())
