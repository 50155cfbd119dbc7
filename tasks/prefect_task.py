"""The one file that wraps a stage as a Prefect task: names, retries, states, artifacts in the UI.

Prefect orders and shows the work; whether a stage needs to run at all is decided by its key, so Prefect's own result
cache stays off, and what passes between tasks is references, never weights.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from prefect import Task, task
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed

from infra.artifacts import ArtifactRef
from infra.errors import ForgelineError
from tasks.execute import RunContext, StageResult, execute_stage
from tasks.pipeline import StageNode

PROGRESS_INTERVAL = 5.0


def stage_task(
    node: StageNode,
    made: dict[str, ArtifactRef],
    context: RunContext,
    on_end: Callable[[str, StageResult | ForgelineError], None],
    read_progress: Callable[[str], float | None],
) -> Task[[], Any]:
    """A Prefect task that executes `node`. On success the stage's reference is put into `made` for those that wait."""

    @task(
        name=node.name,
        task_run_name=f"{node.name} ({node.stage.kind})",
        tags=[node.stage.kind],
        retries=node.execution.retries,
        retry_delay_seconds=[2.0 * 2**i for i in range(node.execution.retries)] or None,
        retry_condition_fn=_worth_another_attempt,
        cache_policy=NO_CACHE,
        persist_result=False,
        log_prints=False,
    )
    def run_stage() -> State[Any]:
        progress = _ProgressArtifact(context.run, node.name, read_progress)
        context.notify(node.name, on_poll=progress.update)
        try:
            result = execute_stage(node, made, context)
        except ForgelineError as error:
            on_end(node.name, error)
            raise
        finally:
            context.notify(node.name, on_poll=None)
        made[node.name] = result.manifest.ref
        on_end(node.name, result)
        progress.finish()
        _table(context.run, node, result)
        name = {"reuse": "Reused", "resume": "Resumed", "run": "Completed"}[result.action]
        return Completed(name=name, message=f"{result.manifest.type} {result.manifest.key[:12]}", data=node.name)

    return run_stage


def _worth_another_attempt(task_: Any, run: TaskRun, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, ForgelineError) and error.transient


def artifact_key(*parts: str) -> str:
    """A Prefect artifact key: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


class _ProgressArtifact:
    """A progress bar in the UI, made once the job reports steps and updated every few seconds."""

    def __init__(self, run: str, stage: str, read: Callable[[str], float | None]) -> None:
        self.key, self.stage, self.read = artifact_key(run, stage, "progress"), stage, read
        self.id: Any = None
        self.next = 0.0

    def update(self) -> None:
        if time.monotonic() < self.next:
            return
        self.next = time.monotonic() + PROGRESS_INTERVAL
        percent = self.read(self.stage)
        if percent is None:
            return
        if self.id is None:
            self.id = create_progress_artifact(percent, key=self.key, description=f"{self.stage}: steps done")
        else:
            update_progress_artifact(self.id, percent)

    def finish(self) -> None:
        if self.id is not None:
            update_progress_artifact(self.id, 100.0)


def _table(run: str, node: StageNode, result: StageResult) -> None:
    manifest = result.manifest
    rows = [{"metric": name, "value": f"{value:.6g}"} for name, value in manifest.metrics.items()]
    rows += [
        {"metric": "size_mb", "value": f"{manifest.size / 1e6:.2f}"},
        {"metric": "key", "value": manifest.key[:16]},
    ]
    create_table_artifact(
        rows, key=artifact_key(run, node.name, "metrics"), description=f"{node.name}: {result.action}"
    )
