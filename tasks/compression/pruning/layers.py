"""Whole layers leave: those without which the loss on examples rises least."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from infra.errors import StageError
from tasks.compression.pruning.calibration import Batch
from tasks.models.inputs import model_inputs
from tasks.models.structure.layer_subset import with_layers
from tasks.models.structure.transformer import layer_stacks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.objective import Objective


def layer_importance(model: PreTrainedModel, batches: Sequence[Batch], objective: Objective) -> list[list[float]]:
    """Of each stack's layers how far the mean loss rises when what goes into the layer comes out of it unchanged."""
    whole = _loss(model, batches, objective)
    found = []
    for _, stack in layer_stacks(model):
        rises = []
        for layer in stack:
            with _skipped(layer):
                rises.append(_loss(model, batches, objective) - whole)
        found.append(rises)
    return found


def without_layers(model: PreTrainedModel, importance: Sequence[Sequence[float]], keep: float) -> PreTrainedModel:
    """A new model with the most important share `keep` of each stack's layers, at least one, in their order.

    Raises StageError if none would go.
    """
    kept = []
    for rises in importance:
        count = max(1, round(keep * len(rises)))
        order = sorted(range(len(rises)), key=lambda i: -rises[i])
        kept.append(sorted(order[:count]))
    if all(len(layers) == len(rises) for layers, rises in zip(kept, importance, strict=True)):
        deepest = max(map(len, importance))
        raise StageError(
            f"keep {keep} leaves all {deepest} layers",
            where="keep",
            hint=f"Use at most {(deepest - 1) / deepest:.3f}." if deepest > 1 else "A model has one layer at least.",
        )
    return with_layers(model, kept)


def _loss(model: PreTrainedModel, batches: Sequence[Batch], objective: Objective) -> float:
    total = units = 0.0
    model.train(False)
    with torch.no_grad():
        for batch in batches:
            loss, count = objective.loss(objective.read(model(**model_inputs(batch, model))), batch)
            total, units = total + float(loss), units + count
    return total / units


@contextmanager
def _skipped(layer: torch.nn.Module) -> Iterator[None]:
    def passed_on(module: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        states = inputs[0] if inputs else named["hidden_states"]
        return (states, *output[1:]) if isinstance(output, tuple) else states

    hook = layer.register_forward_hook(passed_on, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
