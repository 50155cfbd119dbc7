"""How often to save: the interval at which saving and lost work cost least together. Pure arithmetic.

With a cost of d seconds a checkpoint and M seconds between failures, an interval of t loses d/t to saving and t/2M to
repeated work; the sum is least at t = sqrt(2 d M) (Young, 1974; Daly, 2006). Both are measured: d is the stall of the
step that takes the snapshot and what later steps lose to the upload beside them, M comes from the seconds trained and
the times the training was cut short, by all attempts so far.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

FIRST_SECONDS = 15.0
SHORTEST_SECONDS = 5.0
LONGEST_SECONDS = 1800.0
PRIOR_SECONDS = 3600.0
"""Before anything failed, one failure an hour is expected."""
QUIET_STEPS = 64


def best_interval(cost: float, between_failures: float) -> float:
    """Young's interval in seconds."""
    return math.sqrt(2.0 * cost * between_failures)


class Cadence:
    """Measures the cost of checkpoints in a running training. All times in seconds."""

    def __init__(self, trained: float = 0.0, interruptions: int = 0) -> None:
        self.trained, self.interruptions = trained, interruptions
        self._quiet: deque[float] = deque(maxlen=QUIET_STEPS)
        self._cost: float | None = None
        self._pending = 0.0

    def step(self, seconds: float, *, saving: bool) -> None:
        """A step took so long; `saving`: a checkpoint was stored beside it."""
        self.trained += seconds
        if not saving:
            self._quiet.append(seconds)
        elif self._quiet:
            self._pending += max(0.0, seconds - statistics.median(self._quiet))

    def stall(self, seconds: float) -> None:
        """The training stood still for a snapshot."""
        self._pending += seconds

    def saved(self) -> None:
        """A checkpoint is complete: what was measured since the last one was its cost."""
        self._cost = self._pending if self._cost is None else 0.5 * (self._cost + self._pending)
        self._pending = 0.0

    @property
    def seconds(self) -> float:
        """The interval to keep now."""
        if self._cost is None:
            return FIRST_SECONDS
        between = (self.trained + PRIOR_SECONDS) / (self.interruptions + 1)
        return min(max(best_interval(self._cost, between), SHORTEST_SECONDS), LONGEST_SECONDS)
