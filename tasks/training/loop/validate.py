"""Validation of a model under training: mean loss and the objective's metrics, the work split over the ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from tasks.data.dataset.examples import example_order
from tasks.objective import Feature, Objective, Outputs, Predictions
from tasks.training.engine.ranks import Ranks

BATCH = 32
Forward = Callable[[Mapping[str, torch.Tensor]], Outputs]
"""A batch on the device -> what the objective reads of the model's output."""
Validate = Callable[[Forward, Sequence[Feature], Ranks], dict[str, float]]
"""Mean loss and metrics of held-out examples on rank 0, {} elsewhere. Collective."""


def validate(
    objective: Objective,
    forward: Forward,
    features: Sequence[Feature],
    ranks: Ranks,
) -> dict[str, float]:
    """{"loss": mean over units, metric: value ...} on rank 0, {} elsewhere and for an empty split. Collective.

    Metrics that this split leaves undefined (of a class it does not have) are left out.

    forward: a batch on the device -> outputs, with the model in eval mode.
    Rank r takes batches r, r + world_size, ...; a rank without a batch left repeats one at weight zero, because
    partitioned weights (ZeRO 3) are gathered by all ranks together.
    """
    if not features:
        return {}
    # Examples of like lengths together, so that little is padding; unless it matters for the loss which are together.
    order = example_order(features) if objective.examples_per_loss == 1 else np.arange(len(features))
    size = -(-BATCH // objective.examples_per_loss) * objective.examples_per_loss
    batches = range(-(-len(features) // size))
    rounds = -(-len(batches) // ranks.world_size)
    loss_sum, units = 0.0, 0.0
    found: list[Predictions] = []
    with torch.no_grad():
        for number in range(rounds):
            place = number * ranks.world_size + ranks.rank
            start = (place % len(batches)) * size
            batch = objective.collate([features[int(i)] for i in order[start : start + size]])
            on_device = {name: value.to(ranks.device) for name, value in batch.items()}
            outputs = forward(on_device)
            if place >= len(batches):
                continue
            loss, count = objective.loss(outputs, on_device)
            loss_sum, units = loss_sum + float(loss), units + count
            arrays = {name: value.numpy() for name, value in batch.items()}
            given = {name: value.float().cpu().numpy() for name, value in outputs.items()}
            found.append(objective.predictions(given, arrays))
    loss_sum, total = ranks.sum(loss_sum, units)
    gathered = ranks.gather(found)
    if gathered is None:
        return {}
    parts = [part for rank in gathered for part in rank]
    predictions = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    count = len(next(iter(predictions.values())))
    metrics = objective.metrics(predictions, np.ones((1, count)))
    defined = {name: float(values[0]) for name, values in metrics.items() if not np.isnan(values[0])}
    return {"loss": loss_sum / (total or 1.0), **defined}
