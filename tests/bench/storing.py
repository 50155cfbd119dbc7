"""Which steps of a training ran while a checkpoint was being stored. Needs torch: for arms, not for rows.

watch(WatchedCheckpoints)                    # before `train`; the loop then makes this class
WatchedCheckpoints.made.step_ended()         # in the job's `progress`: "quiet", "mixed" or "storing"
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from tasks.training.checkpoints.checkpoint import Checkpoints, TrainingState
from tasks.training.loop import train as loop

When = Literal["quiet", "mixed", "storing"]


class WatchedCheckpoints(Checkpoints):
    """The product's checkpoints; asks once more at the end of a step whether the store is through."""

    made: ClassVar[WatchedCheckpoints]

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        WatchedCheckpoints.made = self
        self.snapshots = 0
        self._overlapped = False

    def save(self, state: TrainingState, growing: Mapping[str, Path]) -> float:
        self.snapshots += 1
        self._overlapped = True
        return super().save(state, growing)

    def step_ended(self) -> When:
        """storing: a checkpoint was under way from the begin of the step (or its snapshot) to its end; quiet: never."""
        self.poll()
        began, self._overlapped = self._overlapped, self.busy
        if not began:
            return "quiet"
        return "storing" if self.busy else "mixed"


def watch(kind: type[WatchedCheckpoints]) -> None:
    """Have the training loop of this process make its checkpoints with `kind`."""
    loop.Checkpoints = kind  # type: ignore[misc]
