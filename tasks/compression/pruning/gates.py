"""How much a model would miss parts of what goes into a matrix: neurons, heads, channels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from tasks.compression.pruning.calibration import Batch, inputs_given_to
from tasks.models.inputs import model_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.objective import Objective


def gate_importance(
    model: PreTrainedModel, batches: Iterable[Batch], objective: Objective, outward: Sequence[str], width: int = 1
) -> list[torch.Tensor]:
    """For each module named in `outward`, [inputs / width]: how far the loss would move without each part of its input.

    To first order (Molchanov et al., 2019): the importance is the square of an example's slope (`gate_slopes`), summed
    over the part's `width` inputs before and over examples after.
    """
    scores: dict[str, torch.Tensor] = {}
    for slopes in gate_slopes(model, batches, objective, outward):
        for name, slope in slopes.items():
            squares = slope.reshape(len(slope), -1, width).sum(-1).square().sum(0)
            scores[name] = scores[name] + squares if name in scores else squares
    return list(scores.values())


def gate_slopes(
    model: PreTrainedModel, batches: Iterable[Batch], objective: Objective, names: Sequence[str]
) -> Iterator[dict[str, torch.Tensor]]:
    """Of each batch, for each named module, float64 [B, inputs]: dL/dz of each example with a gate z = 1 on an input.

    It is the sum of activation x gradient over an example's tokens or places. An input is a channel of a convolution,
    and the last axis of everything else. What others read of the same activations does not count.
    """
    modules = {name: model.get_submodule(name) for name in names}
    activations: dict[str, torch.Tensor] = {}

    def read(name: str, inputs: torch.Tensor) -> torch.Tensor:
        # A view has a gradient of its own; the tensor's would be that of all its readers.
        activations[name] = inputs.view_as(inputs)
        return activations[name]

    with inputs_given_to(modules, read):
        model.train(False)
        for batch in batches:
            total, _ = objective.loss(objective.read(model(**model_inputs(batch, model))), batch)
            gradients = torch.autograd.grad(total, [activations[name] for name in names])
            found = {}
            for name, gradient in zip(names, gradients, strict=True):
                slopes = (activations[name] * gradient).detach().double()
                axis = 1 if isinstance(modules[name], nn.Conv2d) else slopes.ndim - 1
                places = [other for other in range(1, slopes.ndim) if other != axis]
                found[name] = slopes.sum(places) if places else slopes
            yield found
