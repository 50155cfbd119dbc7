"""Who spent a run's seconds: collects news of its stages, with the time of each, and makes the ledger of them.

What a stage waited for and how long its jobs took is known here; what a job did meanwhile is read from the files it
leaves (`tasks/run/job_times.py`).
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.budget import Budget, Spent
from infra.ledger import Interval, stage_buckets, wall_buckets
from tasks.pipeline.node import StageNode
from tasks.run.job_times import RUNNING, JobTimes, furthest_step


@dataclass
class _JobTime:
    """One job. Times in seconds since the run began."""

    stage: str
    times: JobTimes
    slots: int
    gpus: int
    submitted: float
    ended: float | None = None
    how: str = RUNNING

    def intervals(self, now: float) -> list[Interval]:
        at, found = self.submitted, []
        for bucket, seconds in self.times.spans((self.ended or now) - self.submitted, self.how):
            found.append(Interval(self.stage, bucket, at, at + seconds))
            at += seconds
        return found

    def spent(self, now: float) -> Spent:
        seconds = (self.ended or now) - self.submitted
        return Spent(0.0, self.slots * seconds, self.gpus * seconds)


class StageTimes:
    """The times of one run; safe from many threads."""

    def __init__(self, nodes: Collection[StageNode]) -> None:
        self._trains = {node.name for node in nodes if node.stage.distributed}
        self._lock, self._began = threading.Lock(), time.monotonic()
        self._first: float | None = None
        self._waiting: dict[str, float] = {}
        self._waited: list[Interval] = []
        self._jobs: list[_JobTime] = []
        self._saved: dict[str, float] = {}

    def now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._began

    def news(self, stage: str, *, state: str = "", ended: str = "", slots: int = 0, gpus: int = 0, **news: Any) -> None:
        """What `execute_stage` reports of a stage: that it waits, that its job runs, how that ended."""
        now, running = self.now(), state in ("running", "resuming")
        if running:
            folder: Path = news["folder"]
            times = JobTimes(folder, furthest_step(folder) if stage in self._trains else 0)
        with self._lock:
            if state and self._first is None:
                self._first = now
            if state in ("waiting", "queued"):
                self._waiting.setdefault(stage, now)
            elif running:
                self._end_waiting(stage, now)
                self._jobs.append(_JobTime(stage, times, slots, gpus, now))
            elif ended:
                job = next(job for job in reversed(self._jobs) if job.stage == stage)
                job.ended, job.how = now, ended

    def end(self, stage: str) -> None:
        """The stage waits for nothing any more."""
        with self._lock:
            self._end_waiting(stage, self.now())

    def reused(self, stage: str, timings: dict[str, float]) -> None:
        """What making the stage's artifact took, when it was made."""
        self._saved[stage] = timings.get("fetch", 0.0) + timings.get("run", 0.0)

    def _end_waiting(self, stage: str, now: float) -> None:
        if stage in self._waiting:
            self._waited.append(Interval(stage, "queue", self._waiting.pop(stage), now))

    def spent(self) -> Spent:
        """So far."""
        with self._lock:
            now = self.now()
            return sum((job.spent(now) for job in self._jobs), Spent(seconds=now))

    def rate(self) -> Spent:
        """What a second costs now."""
        with self._lock:
            busy = [job for job in self._jobs if job.ended is None]
            return Spent(1.0, sum(job.slots for job in busy), sum(job.gpus for job in busy))

    def ledger(self, budget: Budget) -> dict[str, Any]:
        """The `ledger` of a run record; see docs/operate.md. Seconds, but for ratios and `cost`."""
        with self._lock:
            wall = round(self.now(), 3)
            jobs = {job.stage: [other for other in self._jobs if other.stage == job.stage] for job in self._jobs}
            intervals = [Interval("", "startup", 0.0, wall if self._first is None else self._first), *self._waited]
            intervals += [Interval(stage, "queue", since, wall) for stage, since in self._waiting.items()]
            for job in self._jobs:
                intervals += job.intervals(wall)
            buckets, stages = wall_buckets(intervals, wall), stage_buckets(intervals, wall)
            total = sum((job.spent(wall) for job in self._jobs), Spent())
            saved = dict(self._saved)
        spent = {
            stage: _spent(sum((job.spent(wall) for job in own), Spent()), budget) | _training(own, wall)
            for stage, own in jobs.items()
        }
        return {
            "wall": wall,
            "buckets": buckets,
            "goodput": round(buckets["useful"] / wall, 4) if wall else 0.0,
            **_spent(total, budget),
            "saved_by_reuse": round(sum(saved.values()), 3),
            "stages": {name: {"buckets": stages.get(name, {}), **spent.get(name, {})} for name in {**stages, **spent}}
            | {name: {"saved_by_reuse": round(seconds, 3)} for name, seconds in saved.items() if name not in stages},
        }


def flat(ledger: dict[str, Any]) -> dict[str, float]:
    """The figures of a whole run by name, without its stages."""
    rest = {name: value for name, value in ledger.items() if name not in ("buckets", "stages")}
    return {**{f"seconds/{bucket}": value for bucket, value in ledger["buckets"].items()}, **rest}


def _spent(spent: Spent, budget: Budget) -> dict[str, float]:
    found = {"core_seconds": round(spent.core_seconds, 3), "gpu_seconds": round(spent.gpu_seconds, 3)}
    return {**found, "cost": round(budget.cost(spent), 4)} if budget.priced else found


def _training(jobs: list[_JobTime], now: float) -> dict[str, float]:
    """Steps made for the first time, their median, and their share of the time from first submit to last end."""
    steps = [seconds for job in jobs for seconds in job.times.steps]
    if not steps:
        return {}
    median, wall = statistics.median(steps), (jobs[-1].ended or now) - jobs[0].submitted
    goodput = round(min(1.0, len(steps) * median / wall), 4)
    return {"steps": len(steps), "step_seconds": round(median, 5), "goodput": goodput}
