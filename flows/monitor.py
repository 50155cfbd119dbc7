"""Between the stages' threads and what watches them: the live view, the run record, the progress bars in the UI."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from flows.live import LiveView
from infra.errors import ForgelineError
from infra.tail import json_objects
from tasks.pipeline.node import StageNode
from tasks.pipeline.stopped import stopped_by
from tasks.run.execute import StageResult
from tasks.run.record import RunRecord
from tasks.run.worker import EVENTS_FILE

TAIL_BYTES = 4096


class Monitor:
    """Receives what `execute_stage` reports; safe from many threads."""

    def __init__(self, live: LiveView, record: RunRecord, nodes: Collection[StageNode]) -> None:
        self.live, self.record, self.nodes = live, record, nodes
        self.failures: dict[str, ForgelineError] = {}
        self.refused: set[str] = set()
        self._folders: dict[str, Path] = {}
        self._on_poll: dict[str, Callable[[], None] | None] = {}
        self._events: dict[str, dict[str, Any]] = {}

    def notify(self, stage: str, **news: Any) -> None:
        """News of a stage: state, reason, its job folder, a hook to call on each poll, or just that it was polled."""
        if "on_poll" in news:
            self._on_poll[stage] = news["on_poll"]
            return
        self.record.times.news(stage, **news)
        if "folder" in news:
            self._folders[stage] = news["folder"]
        if news.get("state") in ("running", "resuming"):
            self.record.begin(stage)
        if "state" in news:
            self.live.update(stage, state=news["state"], reason=news.get("reason", ""))
        if news.get("poll") and stage in self._folders:
            event = last_event(self._folders[stage] / EVENTS_FILE)
            if event and event != self._events.get(stage):
                self._events[stage] = event
                self.live.update(stage, **event)
            hook = self._on_poll.get(stage)
            if hook:
                hook()

    def percent(self, stage: str) -> float | None:
        """How much of the stage's job is done, 0 to 100; None before it reported a step."""
        event = self._events.get(stage)
        return 100.0 * event["step"] / event["total"] if event and event.get("total") else None

    def end(self, stage: str, result: StageResult | ForgelineError) -> None:
        """A stage's attempt ended."""
        self.record.end(stage, result)
        if isinstance(result, ForgelineError):
            self.failures[stage] = result
            self.live.update(stage, state="failed", reason=result.what)
            return
        self.failures.pop(stage, None)
        if result.refused:
            self.refused.add(stage)
            self.skip(stopped_by(self.refused, self.nodes))
        state = "refused" if result.refused else "reused" if result.action == "reuse" else "done"
        self.live.update(stage, state=state, reason=result.reason)
        self.live.warn(stage, result.manifest.warnings)

    def skip(self, stopped: Mapping[str, str]) -> None:
        """Stages do not run, each because of the gate named beside it."""
        for name, gate in stopped.items():
            self.record.skip(name, f"{gate} refused")
            self.live.update(name, state="skipped", reason=f"{gate} refused")


def last_event(path: Path) -> dict[str, Any] | None:
    """The last whole line of a JSONL file that is being written; None if there is none yet."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - TAIL_BYTES))
            lines = stream.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    return next(json_objects(reversed(lines)), None)
