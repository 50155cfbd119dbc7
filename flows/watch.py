"""One look at a pipeline's sources, and the start of its run where new data have come to rest and are worth it.

    changed? -> wait until they stand still -> make the datasets (only new shards cost anything) -> the same examples?
    -> worth a run? -> write the decision -> start the run, once

Waiting is by a clock that cannot jump, within the look; nothing but the journal is remembered, so a look that was
missed or killed costs nothing but time: the next one finds the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from infra.artifacts import ArtifactRef
from infra.errors import UsageError
from infra.open_store import open_store
from infra.patience import Patience
from infra.store import Store
from tasks.pipeline.dag import Pipeline
from tasks.pipeline.deploy import Watch
from tasks.pipeline.deploy_check import watched
from tasks.pipeline.node import StageNode
from tasks.plan import watching
from tasks.plan.watching import SAME_EXAMPLES, Entry, Sources
from tasks.run import decided_run
from tasks.run.decided_run import Fate, Start

RESTLESS = 10
"""A look ends undecided when the sources have not stood still within so many times `quiet`."""
FIRST = "no run was started for these data yet"
Action = Literal["unchanged", "restless", "same", "waits", "started", "elsewhere", "gave up"]


class Starter(Protocol):
    """Starts a pipeline's run."""

    def start(self, entry: Entry, attempt: int) -> dict[str, Any] | None:
        """Start the run of a decision; called again with the same arguments, it starts nothing more.

        Returns what finds the run again; None where it would be left out now, because another one goes on.
        """
        ...

    def fate(self, note: dict[str, Any]) -> Fate:
        """What became of that run."""
        ...


@dataclass(frozen=True)
class Look:
    """What a look came to."""

    action: Action
    reason: str

    def __str__(self) -> str:
        return f"{self.action}: {self.reason}"


def look(
    pipeline: Pipeline,
    starter: Starter,
    make: Callable[[Pipeline], dict[str, ArtifactRef]],
    *,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Look:
    """Look once. make: runs a (cut down) pipeline and returns the artifact of each stage.

    Raises UsageError where the pipeline watches nothing, StageError where a source vanished or the data cannot be made.
    """
    nodes = watched(pipeline.deploy, pipeline.stages)
    settings = pipeline.deploy.watch or Watch()
    store = open_store(pipeline.store, probe=True)
    store.patience = Patience()
    last = watching.last_entry(store, pipeline.name)
    begun = _start(store, pipeline, last, starter) if last is not None else None
    if begun is not None and begun.action != "gave up":
        return begun
    sources = watching.sources_of(nodes)
    if not sources.stages:
        what = "no stage of this pipeline reads files"
        raise UsageError(what, where=str(pipeline.path), hint="There is nothing to watch.")
    if last is not None and last.sources == sources.digest:
        return begun or Look("unchanged", last.reason)
    settled = _at_rest(nodes, sources, settings.quiet, sleep)
    if settled is None:
        return Look("restless", f"the sources did not stand still for {settings.quiet:.0f} s")
    made = make(watching.only(pipeline, settled.stages))
    datasets = {name: made[name] for name in settled.stages}
    if watching.sources_of(nodes) != settled:
        return Look("restless", "the sources changed while they were read")
    reason = FIRST
    if last is not None:
        fresh = watching.fresh_since(store, last, datasets)
        if not fresh.count and not fresh.gone:
            watching.write_entry(store, pipeline.name, last, settled.digest, datasets, SAME_EXAMPLES, same=True)
            return begun or Look("same", SAME_EXAMPLES)
        worth = watching.worth_a_run(store, settings, last, fresh, now(), untrained=begun is not None)
        if not worth.enough:
            return Look("waits", worth.reason)
        reason = worth.reason
    entry = watching.write_entry(store, pipeline.name, last, settled.digest, datasets, reason)
    if entry is None:
        return Look("elsewhere", "another watcher decided first")
    return _start(store, pipeline, entry, starter) or Look("started", reason)


def _start(store: Store, pipeline: Pipeline, entry: Entry, starter: Starter) -> Look | None:
    """Start the run of a decision where none was; again, a bounded number of times, where one did not do its work.

    None where there is nothing to do: it is under way, or has done its work, or a person cancelled it.
    """
    start = decided_run.last_start(store, pipeline.name, entry)
    if start is None:
        return _begin(store, pipeline.name, entry, starter, None, 0, "")
    if start.closed == "gave up":
        if (run := decided_run.done_by(store, pipeline, entry)) is None:
            return Look("gave up", start.why)
        decided_run.close(store, pipeline.name, entry, start, "done", f"by run {run}")
    if start.closed is not None:
        return None
    fate = starter.fate(start.note)
    if fate.state == "under way":
        return None
    if fate.state in ("done", "cancelled"):
        decided_run.close(store, pipeline.name, entry, start, "done" if fate.state == "done" else "cancelled", fate.why)
        return None
    if run := decided_run.done_by(store, pipeline, entry):
        decided_run.close(store, pipeline.name, entry, start, "done", f"by run {run}")
        return None
    failures = start.failures + (fate.state == "failed")
    if failures >= decided_run.STARTS or start.number >= decided_run.MOST:
        tries = f"{start.number} runs were started for it and none did its work (the last: {fate.state}: {fate.why})"
        why = f"{entry.reason}; {tries}. Mend that and run the pipeline, or deploy its run by hand"
        decided_run.close(store, pipeline.name, entry, start, "gave up", why)
        return Look("gave up", why)
    return _begin(store, pipeline.name, entry, starter, start, failures, f"{fate.state}: {fate.why}")


def _begin(
    store: Store, pipeline: str, entry: Entry, starter: Starter, after: Start | None, failures: int, before: str
) -> Look:
    number = after.number + 1 if after else 1
    begun = starter.start(entry, number)
    if begun is None:
        return Look("waits", f"{entry.reason}; another run goes on, and would have this one left out")
    decided_run.note_start(store, pipeline, entry, after, begun, failures)
    return Look("started", f"{entry.reason}" + (f" (start {number}; the one before: {before})" if after else ""))


def _at_rest(nodes: list[StageNode], sources: Sources, quiet: float, sleep: Callable[[float], None]) -> Sources | None:
    """The sources once they stood still for `quiet` seconds; None if they never did."""
    for _ in range(RESTLESS):
        sleep(quiet)
        again = watching.sources_of(nodes)
        if again == sources:
            return sources
        sources = again
    return None
