"""How long a stage will take, from what it took before: the artifacts its `latest` ref has pointed to.

A manifest says what its job took; that of a training run also how many steps it is of and where it went on, so that the
seconds scale to the steps that are to be made now.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra import refs
from infra.artifacts import Manifest
from infra.manifests import undamaged
from tasks.plan.plan import PlannedStage
from tasks.plan.resolved import latest_ref

if TYPE_CHECKING:
    from infra.store import Store
    from tasks.pipeline.node import StageNode

LAST_RUNS = 5
READERS = 8
TO_DO = ("run", "resume", "unknown")


@dataclass(frozen=True)
class Estimate:
    """Seconds, from `runs` times it was made before."""

    low: float
    median: float
    high: float
    runs: int

    def __str__(self) -> str:
        if self.runs == 1:
            return f"about {clock(self.median)} (made once)"
        return f"about {clock(self.median)} ({clock(self.low)} to {clock(self.high)}, made {self.runs} times)"

    def to_json(self) -> dict[str, float]:
        return {"low": self.low, "median": self.median, "high": self.high, "runs": self.runs}


@dataclass(frozen=True)
class PlanEstimate:
    """What is known of a plan: each stage to do, and the longest way through them. `unknown`: stages never made."""

    stages: dict[str, Estimate | None]
    path: tuple[str, ...]
    total: Estimate
    unknown: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        total = {**self.total.to_json(), "path": list(self.path), "unknown": list(self.unknown)}
        del total["runs"]
        return total

    def __str__(self) -> str:
        if not self.path:
            return "no estimate: none of these stages was made before"
        low, median, high = (clock(t) for t in (self.total.low, self.total.median, self.total.high))
        lacking = f", without {', '.join(self.unknown)}, of which nothing is known" if self.unknown else ""
        return f"about {median} ({low} to {high}) along {' -> '.join(self.path)}{lacking}"


def estimate(store: Store, pipeline: str, node: StageNode, step: int = 0) -> Estimate | None:
    """What the stage will take if it goes on from `step`; None if this store has not seen it made."""
    manifests: dict[str, Manifest] = {}
    for entry in refs.past(store, latest_ref(pipeline, node.name), LAST_RUNS).entries:
        if entry.kind == node.stage.kind and entry.key not in manifests:
            manifest = undamaged(store, entry.kind, entry.key)
            if manifest is not None and "run" in manifest.timings:
                manifests[entry.key] = manifest
    asked = getattr(node.params, "max_steps", None)
    found = [seconds_to_make(manifest, asked, step) for manifest in manifests.values()]
    if not found:
        return None
    low, median, high = (round(pick(found), 3) for pick in (min, statistics.median, max))
    return Estimate(low, median, high, len(found))


def seconds_to_make(manifest: Manifest, steps: int | None = None, start: int = 0) -> float:
    """What making an artifact takes from step `start` to `steps` (None: as many as it has), as its last job did."""
    fetch, run = manifest.timings.get("fetch", 0.0), manifest.timings.get("run", 0.0)
    made = manifest.metrics.get("steps", 0.0)
    measured = made - manifest.timings.get("resumed_at", 0.0)
    if measured <= 0:
        return fetch + run
    return fetch + run * max(0.0, (steps or made) - start) / measured


def estimate_plan(lines: Sequence[PlannedStage], store: Store, pipeline: str) -> PlanEstimate:
    """Every stage of a plan that is to be made. One whose inputs are unknown is taken to be made, not reused."""
    to_do = [line for line in lines if line.action in TO_DO]
    with ThreadPoolExecutor(READERS) as readers:  # a store far away answers in tens of milliseconds
        estimated = readers.map(lambda line: estimate(store, pipeline, line.node, line.step or 0), to_do)
        stages = {line.node.name: known for line, known in zip(to_do, estimated, strict=True)}
    path, total = _longest_way(to_do, stages)
    unknown = tuple(name for name, known in stages.items() if known is None)
    return PlanEstimate(stages, path, total, unknown)


def _longest_way(to_do: list[PlannedStage], stages: dict[str, Estimate | None]) -> tuple[tuple[str, ...], Estimate]:
    """The critical path by medians, and the lowest, median and highest length of one: stages run beside each other."""
    nothing = Estimate(0.0, 0.0, 0.0, 0)
    ends: dict[str, Estimate] = {}
    ways: dict[str, tuple[str, ...]] = {}
    for line in to_do:
        name = line.node.name
        before = [need for need in line.node.needs if need in ends]
        known = stages[name]
        last = max(before, key=lambda need: ends[need].median, default=None)
        own = known or nothing
        ends[name] = Estimate(
            max((ends[need].low for need in before), default=0.0) + own.low,
            max((ends[need].median for need in before), default=0.0) + own.median,
            max((ends[need].high for need in before), default=0.0) + own.high,
            own.runs,
        )
        ways[name] = (*(ways[last] if last else ()), *((name,) if known else ()))
    if not ends:
        return (), nothing
    longest = max(ends, key=lambda name: ends[name].median)
    low, high = max(end.low for end in ends.values()), max(end.high for end in ends.values())
    return ways[longest], Estimate(round(low, 3), round(ends[longest].median, 3), round(high, 3), 0)


def clock(seconds: float) -> str:
    """`0.4 s`, `38 s`, `3 min`, `2.1 h`."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
