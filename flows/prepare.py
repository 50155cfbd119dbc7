"""`forgeline prepare`: the parts of a data stage, made by many machines before `forgeline run` needs them.

The workers are those of a running Dask scheduler, or processes started here for the time. The scheduler too needs
Forgeline (`forgeline[dask]`), because it unpacks what it hands on. A worker needs what opens the store in its
environment, and the sources at the same place; a folder as a store has to be the same one everywhere. What it has under
way lies in its Dask `local_directory`.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flows.home import HOME, home
from flows.prefect_settings import log_to_file, prefect_environment, wait_for_temporary
from infra.artifacts import ArtifactRef
from infra.config_check import did_you_mean
from infra.errors import ForgelineError, SourcesChanged, UsageError
from infra.folders import writable
from infra.local_garbage import own
from infra.open_store import open_store
from infra.patience import Patience
from infra.store import Store
from tasks.data.parts.batches import Batch, batches
from tasks.pipeline.dag import Pipeline
from tasks.pipeline.node import StageNode
from tasks.plan.chosen_inputs import bound
from tasks.plan.parts import parts_of
from tasks.plan.plan import make_plan, resolve_refs
from tasks.run.execute import LOOKS
from tasks.run.record import new_run_id


@dataclass(frozen=True)
class Prepared:
    """How the parts of a stage came about; `workers` (host:process id) made some."""

    stage: str
    parts: int
    made: int
    workers: list[str]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "reused": self.parts - self.made}

    def __str__(self) -> str:
        by = f" by {len(self.workers)} worker{'s' if len(self.workers) > 1 else ''}" if self.workers else ""
        return f"{self.stage}: {self.parts} parts, {self.made} made{by}, {self.parts - self.made} reused"


def prepare(
    pipeline: Pipeline, stage: str, *, dask: str | None, workers: int | None, say: Callable[[str], None]
) -> Prepared:
    """Make the parts of `stage` that are missing. Raises UsageError where it has none, or its inputs are not made yet.

    dask: address of a scheduler; else `workers` processes of this machine, by default as many as it has cores.
    """
    if importlib.util.find_spec("prefect_dask") is None:
        raise UsageError("this needs Dask, which is not installed", hint="pip install 'forgeline[dask]'")
    store = open_store(pipeline.store, probe=True)
    store.patience = Patience()
    pipeline = bound(pipeline, store)
    node, made = _stage(pipeline, stage, store)
    writable(home(), HOME)
    for looks in range(1, LOOKS + 1):
        try:
            return _prepare(pipeline, node, made, store, dask, workers, say)
        except SourcesChanged as error:
            if looks == LOOKS:
                raise
            say(f"{error.where}: {error.what}; it is looked at again")
    raise AssertionError("unreachable")


def _prepare(
    pipeline: Pipeline,
    node: StageNode,
    made: dict[str, ArtifactRef],
    store: Store,
    dask: str | None,
    workers: int | None,
    say: Callable[[str], None],
) -> Prepared:
    stage = node.name
    with tempfile.TemporaryDirectory(prefix="prepare-", dir=home().resolve()) as scratch:
        own(Path(scratch))
        kind, specs = parts_of(node, made, store, Path(scratch))
        missing = batches(kind, specs, store)
        total = len({spec.key(kind) for spec in specs})
        if not missing:
            return Prepared(stage, total, 0, [])
        count = sum(len(batch.specs) for batch in missing)
        say(f"{stage}: {count} of {total} parts to make, {sum(b.size for b in missing) / 1e6:.0f} MB")
        try:
            by = _make(pipeline, node, missing, dask, workers, Path(scratch), say)
            return Prepared(stage, total, count, sorted(by))
        except ForgelineError as error:
            raise error.within(f"stage {stage}") from error.__cause__


def _stage(pipeline: Pipeline, name: str, store: Store) -> tuple[StageNode, dict[str, ArtifactRef]]:
    """The stage, and the artifacts of everything it may name."""
    node = pipeline.stages.get(name)
    with_parts = ", ".join(n for n, node in pipeline.stages.items() if node.stage.parts) or "none"
    if node is None:
        raise UsageError(f"no stage {name!r}; {did_you_mean(name, pipeline.stages)}", hint=f"With parts: {with_parts}.")
    if node.stage.parts is None:
        raise UsageError(
            f"a {node.stage.kind} is not made of parts",
            where=f"stage {name}",
            hint=f"Stages of {pipeline.path} that are: {with_parts}.",
        )
    made = resolve_refs(pipeline, store)
    made |= {line.node.name: line.artifact for line in make_plan(pipeline, store) if line.artifact}
    if waits_for := [needed for needed in node.needs if needed not in made]:
        raise UsageError(
            f"its inputs are not made yet: {', '.join(waits_for)}",
            where=f"stage {name}",
            hint=f"`forgeline run {pipeline.path}` makes them.",
        )
    return node, made


def _make(
    pipeline: Pipeline,
    node: StageNode,
    missing: list[Batch],
    dask: str | None,
    workers: int | None,
    scratch: Path,
    say: Callable[[str], None],
) -> set[str]:
    """The workers that made the batches."""
    run, total = new_run_id(), sum(batch.size for batch in missing)
    folder = home() / "runs" / run
    folder.mkdir(parents=True)
    done = 0

    def progress(batch: Batch) -> None:
        nonlocal done
        before, done = done, done + batch.size
        if done * 10 // max(total, 1) > before * 10 // max(total, 1):
            say(f"{node.name}: {done / 1e6:.0f} of {total / 1e6:.0f} MB")

    with prefect_environment(home(), folder):
        from flows.dask_flow import local_workers, make_with_dask, running_scheduler

        log_to_file(folder / "prefect.log")
        wait_for_temporary()
        count = workers or len(os.sched_getaffinity(0))
        runner = running_scheduler(dask) if dask else local_workers(count, scratch)
        return make_with_dask(pipeline.name, node.name, run, runner, missing, node.execution.retries, progress)
