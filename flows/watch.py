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
from infra.errors import StageError, UsageError
from infra.store import Store
from tasks import watching
from tasks.deployment import Watch, watched
from tasks.pipeline import Pipeline, StageNode
from tasks.watching import Entry, Sources

RESTLESS = 10
"""A look ends undecided when the sources have not stood still within so many times `quiet`."""
FIRST = "no run was started for these data yet"
SAME = "the sources changed, the examples made of them did not"
Action = Literal["unchanged", "restless", "same", "waits", "started", "elsewhere"]


class Starter(Protocol):
    """Starts a pipeline's run."""

    def start(self, entry: Entry, attempt: int) -> dict[str, Any]:
        """Start the run of a decision; called again with the same arguments, it starts nothing more.

        Returns what finds the run again.
        """
        ...

    def crashed(self, note: dict[str, Any]) -> bool:
        """Whether that run ended without having ended its work: killed, or nowhere to be found."""
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
    store = Store.open(pipeline.store, probe=True)
    last = watching.last_entry(store, pipeline.name)
    if last is not None and (again := _start(store, pipeline.name, last, starter)):
        return again
    sources = watching.sources_of(nodes)
    if not sources.stages:
        what = "no stage of this pipeline reads files"
        raise UsageError(what, where=str(pipeline.path), hint="There is nothing to watch.")
    if last is not None and last.sources == sources.digest:
        return Look("unchanged", last.reason)
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
            watching.write_entry(store, pipeline.name, last, settled.digest, datasets, SAME, same=True)
            return Look("same", SAME)
        worth = watching.worth_a_run(store, settings, last, fresh, now())
        if not worth.enough:
            return Look("waits", worth.reason)
        reason = worth.reason
    entry = watching.write_entry(store, pipeline.name, last, settled.digest, datasets, reason)
    if entry is None:
        return Look("elsewhere", "another watcher decided first")
    return _start(store, pipeline.name, entry, starter) or Look("started", reason)


def _start(store: Store, pipeline: str, entry: Entry, starter: Starter) -> Look | None:
    """Start the run of a decision unless it is started; again, a bounded number of times, where it crashed."""
    attempt, note = watching.starts_of(store, pipeline, entry)
    if note is not None and (attempt >= watching.STARTS or not starter.crashed(note)):
        return None
    begun = starter.start(entry, attempt + 1)
    watching.note_start(store, pipeline, entry, attempt, begun)
    again = f" (start {attempt + 1}: the one before crashed)" if attempt else ""
    return Look("started", f"{entry.reason}{again}")


def _at_rest(nodes: list[StageNode], sources: Sources, quiet: float, sleep: Callable[[float], None]) -> Sources | None:
    """The sources once they stood still for `quiet` seconds; None if they never did."""
    for _ in range(RESTLESS):
        sleep(quiet)
        again = watching.sources_of(nodes)
        if again == sources:
            return sources
        sources = again
    return None


def made_of(record: dict[str, Any], code: int) -> dict[str, ArtifactRef]:
    """Artifacts of a run's stages. Raises StageError where it did not end well."""
    for stage in record["stages"]:
        if stage["error"]:
            error = stage["error"]
            raise StageError(f"the data cannot be made: {error['what']}", where=error["where"], hint=error["hint"])
    if code:
        raise StageError(f"the data were not made: the run was {record['status']}", hint="The next look tries again.")
    return {stage["name"]: ArtifactRef(**stage["artifact"]) for stage in record["stages"]}
