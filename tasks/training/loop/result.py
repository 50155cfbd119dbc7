"""What a training run hands to its stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedModel

from tasks.metrics.class_names import config_labels, with_class_names
from tasks.models.inputs import model_inputs
from tasks.objective import Feature, Objective
from tasks.training.engine.ranks import Ranks
from tasks.training.loop.validate import validate


@dataclass
class TrainResult:
    """What a training run left. `model` is plain, in fp32, on the CPU and in eval mode, complete on rank 0 only."""

    model: PreTrainedModel
    steps: int
    work: float
    """How much of `unit` all steps held."""
    unit: str
    summary: dict[str, float]
    """See `Record.summary`: medians of speed and mfu over the steps, marks and counts."""
    seen: list[int]
    """Indices of the train features met at least once, sorted."""
    validation: dict[str, float] = field(default_factory=dict)
    """Mean loss and the objective's metrics on the validation split after the last step, on rank 0."""

    @classmethod
    def untrained(
        cls, model: PreTrainedModel, objective: Objective, validation_features: Sequence[Feature]
    ) -> TrainResult:
        """A model as it is, on the CPU, measured like a trained one."""
        model.train(False)
        values = validate(
            objective,
            lambda batch: objective.read(model(**model_inputs(batch, model))),
            validation_features,
            Ranks(),
        )
        named = with_class_names(values, config_labels(model.config))
        return cls(model, steps=0, work=0, unit=objective.work_unit, summary={}, seen=[], validation=named)

    def metrics(self) -> dict[str, float]:
        """The summary a stage returns, finite numbers: what the split does not define is left out, never a loss."""
        defined = {name: v for name, v in self.validation.items() if name == "loss" or math.isfinite(v)}
        return {
            "steps": float(self.steps),
            self.unit: float(self.work),
            **self.summary,
            **{f"validation_{name}": value for name, value in defined.items()},
        }
