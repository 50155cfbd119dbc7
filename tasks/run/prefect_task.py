"""The one file that wraps a stage as a Prefect task: names, retries, states, artifacts in the UI.

Prefect orders and shows the work; whether a stage needs to run at all is decided by its key, so Prefect's own result
cache stays off, and what passes between tasks is references, never weights.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any

from prefect import Task, get_run_logger, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.events import emit_event
from prefect.states import Completed, Failed

from infra import durations
from infra.artifacts import ArtifactRef
from infra.errors import ForgelineError
from infra.markdown import code, plain_text
from tasks.evaluation.champion import NAME, sentence
from tasks.pipeline.node import StageNode
from tasks.pipeline.stopped import stopped_by
from tasks.run.context import RunContext
from tasks.run.execute import StageResult, execute_stage, refusal
from tasks.run.head_start import Begun, HeadStart

PROGRESS_INTERVAL = 5.0
PROMOTED = "forgeline.model.promoted"
log = logging.getLogger(__name__)


def stage_task(
    node: StageNode,
    nodes: Collection[StageNode],
    made: dict[str, ArtifactRef],
    context: RunContext,
    on_end: Callable[[str, StageResult | ForgelineError], None],
    read_progress: Callable[[str], float | None],
    updates: UiUpdates,
    head_start: HeadStart | None = None,
) -> Task[[], Any]:
    """A Prefect task that executes `node`. On success the stage's reference is put into `made` for those that wait.

    Prefect starts it once all it needs has ended well, and what is optional has ended somehow. `nodes`: all of the
    pipeline, which say whether what is optional was stopped by a gate, or failed. head_start: where the stage may have
    begun already; the task then waits for it.
    """

    @task(
        name=node.name,
        task_run_name=f"{node.name} ({node.stage.kind})",
        # No tags: Prefect's engine asks the server for a slot of each, and a stage that begins while it is away fails.
        retries=node.execution.retries,
        retry_delay_seconds=[2.0 * 2**i for i in range(node.execution.retries)] or None,
        retry_condition_fn=worth_another_attempt,
        cache_policy=NO_CACHE,
        persist_result=False,
        log_prints=False,
    )
    def run_stage() -> State[Any]:
        stopped = stopped_by(context.refused, nodes)
        if node.name in stopped:
            return Failed(name="NotReady", message=f"{stopped[node.name]} refused")
        if failed := [name for name in node.needs if name not in made and name not in stopped]:
            return Failed(name="NotReady", message=f"{', '.join(failed)} failed")
        progress = _ProgressArtifact(context.pipeline, node.name, read_progress, updates)
        context.notify(node.name, on_poll=progress.update)
        begun = head_start.take(node.name) if head_start else None
        try:
            result = _joined(begun) if begun else execute_stage(node, made, context)
        except ForgelineError as error:
            if not begun:
                on_end(node.name, error.within(f"stage {node.name}"))
            raise
        finally:
            context.notify(node.name, on_poll=None)
        made[node.name] = result.manifest.ref
        if not begun:
            on_end(node.name, result)
        progress.finish()
        updates.later(lambda: _show(context, node, result))
        if result.refused:
            raise refusal(node, context)
        name = {"reuse": "Reused", "resume": "Resumed", "run": "Completed"}[result.action]
        return Completed(name=name, message=f"{result.manifest.type} {result.manifest.key[:12]}", data=node.name)

    return run_stage


def _joined(begun: Begun) -> StageResult:
    """The result of a stage that began before its task did; the UI shows the stage's times, not the task's.

    Prefect keeps the states' own times: a state older than the one before it is dropped. Raises what the stage raised.
    """
    shown = TaskRunContext.get()
    assert shown is not None, "it is called by a task"
    run: Any = shown.task_run
    here = datetime.now(UTC)
    get_run_logger().info(
        "began at %s, before Prefect was there", begun.began.astimezone().isoformat(timespec="seconds")
    )
    run.start_time = begun.began
    run.total_run_time += min(begun.ended or here, here) - begun.began
    try:
        return begun.result.result()
    finally:
        if begun.ended is not None and begun.ended < here and not begun.result.exception():
            run.end_time = begun.ended


def worth_another_attempt(task_: Any, run: TaskRun, state: State[Any]) -> bool:
    """Whether Prefect should try a task again: after failures of the surroundings only."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, ForgelineError) and error.transient


def artifact_key(*parts: str) -> str:
    """A Prefect artifact key: lower-case letters, digits and dashes. Without the run in it, the UI shows a history."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


class UiUpdates:
    """Calls that only show something in the UI, made from a thread of their own: a slow or dead API delays no stage."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Callable[[], object] | None] = queue.Queue(maxsize=100)
        self._thread = threading.Thread(target=self._work, name="ui-updates", daemon=True)
        self._thread.start()

    def later(self, call: Callable[[], object]) -> None:
        """Make `call` soon, in the caller's Prefect context; dropped when a hundred are waiting."""
        context = contextvars.copy_context()
        try:
            self._queue.put_nowait(lambda: context.run(call))
        except queue.Full:
            log.warning("the Prefect API is slow; an update of the UI was dropped")

    def close(self, timeout: float) -> None:
        """Wait for what is queued, at most `timeout` seconds."""
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
        self._thread.join(timeout)

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            try:
                call()
            except Exception as error:  # whatever the API client raises, a picture is not worth a run
                log.warning("the Prefect UI could not be updated: %s", error)


class _ProgressArtifact:
    """A progress bar in the UI with the time left, made once the job reports steps and updated every few seconds.

    Made in the stage's task, to which it belongs; `update` is called from any thread.
    """

    def __init__(self, pipeline: str, stage: str, read: Callable[[str], float | None], updates: UiUpdates) -> None:
        self._of_task = contextvars.copy_context()
        self.key, self.stage, self.read = artifact_key(pipeline, stage, "progress"), stage, read
        self.updates, self.next = updates, 0.0
        self.first: tuple[float, float] | None = None
        self.id: Any = None

    def update(self) -> None:
        percent, now = self.read(self.stage), time.monotonic()
        if percent is None or now < self.next:
            return
        self.next, self.first = now + PROGRESS_INTERVAL, self.first or (now, percent)
        left = time_left(self.first, (now, percent))
        text = (
            f"{self.stage}: about {durations.duration_text(left)} left"
            if left is not None
            else f"{self.stage}: steps done"
        )
        self.updates.later(lambda: self._of_task.run(self._show, percent, text))

    def finish(self) -> None:
        if self.next:
            self.updates.later(lambda: self._of_task.run(self._show, 100.0, f"{self.stage}: done"))

    def _show(self, percent: float, text: str) -> None:
        if self.id is None:
            self.id = create_progress_artifact(percent, key=self.key, description=text)
        else:
            update_progress_artifact(self.id, percent, description=text)


def time_left(first: tuple[float, float], now: tuple[float, float]) -> float | None:
    """Seconds until 100 %, from two points (seconds, percent) at the pace between them; None before it is known."""
    seconds, percent = now[0] - first[0], now[1] - first[1]
    return seconds * (100.0 - now[1]) / percent if percent > 0 else None


def _show(context: RunContext, node: StageNode, result: StageResult) -> None:
    """What the stage made, as artifacts of the UI whose keys stay the same from run to run; a release is an event."""
    manifest = result.manifest
    values = {"size_mb": manifest.size / 1e6, **manifest.metrics}
    rows = [{"metric": plain_text(name), "value": f"{value:.6g}"} for name, value in values.items()]
    rows.append({"metric": "key", "value": manifest.key[:16]})
    description = f"{node.name} of run {context.run}: {result.action}"
    create_table_artifact(rows, key=artifact_key(context.pipeline, node.name, "metrics"), description=description)
    if manifest.type == "verdict":
        verdict = json.loads((context.store.fetch(manifest) / "verdict.json").read_text(encoding="utf-8"))
        key = artifact_key(context.pipeline, node.name, "verdict")
        create_markdown_artifact(verdict_page(verdict), key=key, description=description)
    if manifest.type == "release" and result.action != "reuse":
        release = json.loads((context.store.fetch(manifest) / "release.json").read_text(encoding="utf-8"))
        page = (context.store.fetch(manifest) / "README.md").read_text(encoding="utf-8")
        create_markdown_artifact(page, key=artifact_key(release["ref"], "card"), description=description)
        resource = {"prefect.resource.id": f"forgeline.ref.{release['ref']}", "forgeline.pipeline": context.pipeline}
        emit_event(PROMOTED, resource=resource, payload={**release, "run": context.run})


def verdict_page(verdict: dict[str, Any]) -> str:
    """A gate's verdict in Markdown, with every number it was reached by."""
    names = [f"{code(one['name'])} ({one['digest'][:12]})" for one in (verdict["candidate"], verdict["against"]) if one]
    lines = [f"# {'Passed' if verdict['passed'] else 'Refused'}", "", " against ".join(names), ""]
    data, place = verdict["data"], f"{verdict['data']['stage']}.{verdict['data']['split']}"
    lines += [
        f"On {data['n']:,} examples of {code(place)}, {verdict['resamples']:,} resamples.",
        "",
    ]
    lines += [plain_text(sentence(verdict[NAME])), ""] if NAME in verdict else []
    lines += ["| requirement | candidate | against | compared with the limit | limit | |", "|-|-|-|-|-|-|"]
    for one in verdict["requirements"]:
        sure = f" ({100 * one['confidence']:g} %)" if one["confidence"] else ""
        met = "met" if one["passed"] else "**not met**"
        numbers = ["" if one[n] is None else f"{one[n]:.5g}" for n in ("candidate", "against", "bound", "limit")]
        lines.append(f"| {plain_text(one['metric'])} {plain_text(one['rule'])}{sure} | {' | '.join(numbers)} | {met} |")
    return "\n".join([*lines, "", *(f"- {plain_text(one['sentence'])}" for one in verdict["requirements"])])


def show_ledger(pipeline: str, run: str, ledger: dict[str, Any]) -> None:
    """The ledger of a run as a table in the UI; the key is the same for every run, so the UI keeps a history."""
    wall = max(ledger["wall"], 1e-9)
    rows = [
        {"bucket": bucket, "seconds": f"{seconds:.1f}", "share": f"{seconds / wall:.1%}"}
        for bucket, seconds in ledger["buckets"].items()
    ]
    rows.append({"bucket": "saved by reuse", "seconds": f"{ledger['saved_by_reuse']:.1f}", "share": ""})
    cost = f", cost {ledger['cost']:.2f}" if "cost" in ledger else ""
    description = f"Run {run}: goodput {ledger['goodput']:.1%}, {ledger['core_seconds'] / 3600:.3f} core hours{cost}"
    create_table_artifact(rows, key=artifact_key(pipeline, "ledger"), description=description)
