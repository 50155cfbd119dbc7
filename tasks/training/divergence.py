"""When a step went wrong: a loss or gradient that is not finite, or a loss far above the recent ones. Pure.

A wrong step's update is skipped, so that neither weights nor moments ever see it: the state stays the last good one.
If more follow without a good one between, the weights themselves are at fault; the loop then goes back to an anchor, a
checkpoint at a step that `rollback_every` decides and never the clock, and on with the data after the bad stretch. So
what comes out is a function of the params, wherever and however often the training was interrupted.

A spike is judged by a robust z-score, (loss - median) / (1.4826 x median absolute deviation) over the last good losses:
one outlier does not widen the scale that judges the next.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable

from pydantic import Field

from tasks.stage import StageParams

NORMAL_DEVIATIONS = 1.4826
"""Standard deviations of a normal distribution in one median absolute deviation."""
ENOUGH = 16
FLAT = 1e-3
"""Losses that hardly move leave no scale to judge by; a thousandth of their level then stands for one deviation."""


class DivergenceParams(StageParams):
    """What happens when the loss is not finite or jumps. Identity: it decides which updates are made."""

    zscore: float = Field(
        0.0, ge=0, description="Robust z-score from which a loss counts as a spike. 0: only losses that are not finite."
    )
    window: int = Field(64, ge=ENOUGH, description="Good losses that the z-score is taken over.")
    patience: int = Field(3, ge=0, description="Updates skipped in a row before the training goes back to an anchor.")
    max_skipped: int = Field(20, ge=0, description="Updates skipped in all; one more fails the stage.")
    rollback_every: int = Field(500, ge=1, description="Steps between the anchors a training can go back to.")
    max_rollbacks: int = Field(2, ge=0, description="Times a training goes back; one more fails the stage.")
    learning_rate_factor: float = Field(
        1.0, gt=0, le=1, description="The learning rate is multiplied by this at each way back."
    )


class SpikeDetector:
    """Judges each step's loss against the good ones before it."""

    def __init__(self, params: DivergenceParams) -> None:
        self.params = params
        self._good: deque[float] = deque(maxlen=params.window)

    def restore(self, losses: Iterable[float]) -> None:
        """Forget everything but these good losses, oldest first."""
        self._good.clear()
        self._good.extend(losses)

    def fault(self, loss: float, norm: float | None) -> str | None:
        """What is wrong with a step, as a clause ("the loss became nan"), or None."""
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if value is not None and not math.isfinite(value):
                return f"the {name} became {value}"
        if self.params.zscore and len(self._good) >= ENOUGH:
            middle = statistics.median(self._good)
            spread = statistics.median(abs(value - middle) for value in self._good)
            score = (loss - middle) / max(NORMAL_DEVIATIONS * spread, FLAT * abs(middle), 1e-12)
            if score > self.params.zscore:
                return f"the loss jumped to {loss:.4g}, {score:.1f} robust deviations above {middle:.4g}"
        return None

    def accept(self, loss: float) -> None:
        """Remember the loss of a step whose update was made."""
        self._good.append(loss)
