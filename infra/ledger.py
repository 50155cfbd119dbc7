"""Where the seconds of a run went: intervals of its stages, and the two ways to add them up.

    useful            work that counts: training steps made for the first time, a stage's own work
    commit            storing a stage's result
    checkpoint_stall  a training run that waits for its checkpoints
    data_wait         a training run that waits for its next batch
    startup           processes, imports, fetching inputs, loading a model, the Prefect server
    recomputed        training steps made again, and attempts whose work was lost
    queue             waiting for a slot of the machine, or for another run that makes the same thing
    other             everything else: pauses before another attempt, the end of the run

`wall_buckets` gives each instant of the run to one bucket, so they add up to its wall time. Where stages run side by
side an instant counts for the first bucket of this list that any of them is in: a second in which one stage trains and
another starts up is useful. `stage_buckets` adds up each stage for itself, in stage-seconds.

Both count in whole milliseconds, so that sums are exact. All times are seconds since the run began.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

BUCKETS = ("useful", "commit", "checkpoint_stall", "data_wait", "startup", "recomputed", "queue", "other")
OTHER = len(BUCKETS) - 1


@dataclass(frozen=True)
class Interval:
    """A stretch of a stage's time; those of one stage do not overlap. stage: empty for the run itself."""

    stage: str
    bucket: str
    start: float
    end: float


def wall_buckets(intervals: Iterable[Interval], wall: float) -> dict[str, float]:
    """Seconds of [0, wall] by bucket: every instant in exactly one, what no interval covers in `other`."""
    edges = [(_ms(wall), OTHER, 0)]
    for one in intervals:
        start, end = (min(max(_ms(at), 0), _ms(wall)) for at in (one.start, one.end))
        if start < end:
            rank = BUCKETS.index(one.bucket)
            edges += [(start, rank, 1), (end, rank, -1)]
    under_way, spent, now = [*[0] * OTHER, 1], [0] * len(BUCKETS), 0
    for at, rank, change in sorted(edges):
        first = next(i for i, count in enumerate(under_way) if count)
        spent[first] += at - now
        under_way[rank] += change
        now = at
    return {bucket: ms / 1000 for bucket, ms in zip(BUCKETS, spent, strict=True)}


def stage_buckets(intervals: Iterable[Interval], wall: float) -> dict[str, dict[str, float]]:
    """Seconds of each stage by bucket, those before `wall`; buckets it was never in are left out."""
    found: dict[str, dict[str, int]] = {}
    for one in intervals:
        length = min(_ms(one.end), _ms(wall)) - max(_ms(one.start), 0)
        if one.stage and length > 0:
            stage = found.setdefault(one.stage, {})
            stage[one.bucket] = stage.get(one.bucket, 0) + length
    return {name: {b: stage[b] / 1000 for b in BUCKETS if b in stage} for name, stage in found.items()}


def _ms(seconds: float) -> int:
    return round(1000 * seconds)
