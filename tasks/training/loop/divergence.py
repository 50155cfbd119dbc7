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

from tasks.training.settings import ENOUGH, DivergenceParams

NORMAL_DEVIATIONS = 1.4826
"""Standard deviations of a normal distribution in one median absolute deviation."""
FLAT = 1e-3
"""Losses that hardly move leave no scale to judge by; a thousandth of their level then stands for one deviation."""


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
