"""Which weights a training run keeps: the last ones or the best, those of a step or their moving average; and when it
ends.

The average and the best weights lie beside the trained ones, piece by piece, on whichever rank keeps them, and are
saved with every checkpoint, so that a resumed training run keeps what an undisturbed one would have kept. Neither
depends
on the clock: evaluations are at multiples of `eval_every` and after the last step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from infra.errors import StageError
from tasks.metrics.direction import greater_is_better

if TYPE_CHECKING:
    from tasks.objective import Objective
    from tasks.training.checkpoints.checkpoint import TrainingState
    from tasks.training.engine.parameters import Parameters
    from tasks.training.settings import TrainingParams

AVERAGE, BEST = "average", "best"


class Selection:
    """Of one training, on every rank alike."""

    def __init__(
        self, params: TrainingParams, objective: Objective, parameters: Parameters, *, validated: bool, where: str
    ) -> None:
        self.params, self.parameters = params, parameters
        self.metric = params.watch or objective.primary_metric
        main = self.metric == objective.primary_metric
        self.higher_is_better = objective.greater_is_better if main else greater_is_better(self.metric)
        if self.judges and not validated:
            raise StageError(
                "there is no validation split to choose the weights by",
                where=where,
                hint="Give the dataset a `validation` share, or leave out `keep: best` and `patience`.",
            )
        for part, wanted in ((AVERAGE, params.ema is not None), (BEST, params.keep == "best")):
            if wanted:
                parameters.copy(part)

    @property
    def judges(self) -> bool:
        """Whether evaluations decide anything."""
        return self.params.keep == "best" or self.params.patience is not None

    def updated(self) -> None:
        """After an update."""
        if self.params.ema is not None:
            self.parameters.average(AVERAGE, self.params.ema)

    @contextlib.contextmanager
    def evaluated_weights(self) -> Iterator[None]:
        """The model has the weights that are judged and kept: the average where there is one. Collective."""
        if self.params.ema is None:
            yield
            return
        self.parameters.exchange(AVERAGE)
        try:
            yield
        finally:
            self.parameters.exchange(AVERAGE)

    def judge(self, state: TrainingState, values: Mapping[str, float]) -> None:
        """Note an evaluation (the same on all ranks), and keep the weights if it is the best so far.

        Called while the model has `evaluated_weights`. Raises StageError if it has no such metric.
        """
        state.judged, state.values = state.step, dict(values)
        if not self.judges:
            return
        if self.metric not in values:
            raise StageError(
                f"validation has no metric {self.metric!r}", where="watch", hint=f"It has: {', '.join(values)}."
            )
        value, best = values[self.metric], state.best_values.get(self.metric)
        if best is None or (value > best if self.higher_is_better else value < best):
            state.best_step, state.best_values, state.worse_in_row = state.step, dict(values), 0
            if self.params.keep == "best":
                self.parameters.copy(BEST)
        else:
            state.worse_in_row += 1

    def is_over(self, state: TrainingState) -> bool:
        """Whether it has not become better for long enough."""
        return self.params.patience is not None and state.worse_in_row >= self.params.patience

    def settle(self, state: TrainingState) -> dict[str, float]:
        """Put the kept weights into the model, for good; returns what validation said of them. Collective."""
        if self.params.keep == "best":
            self.parameters.exchange(BEST)
            return state.best_values
        if self.params.ema is not None:
            self.parameters.exchange(AVERAGE)
        return state.values
