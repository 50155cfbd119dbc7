"""What a run of this machine left, or leaves just now, in its folder: `$FORGELINE_HOME/runs/<run>/<stage>/<job>`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.home import home
from flows.stage_progress import StageProgress, clock
from infra.tail import json_objects
from tasks.run.worker import EVENTS_FILE


@dataclass(frozen=True)
class JobFolder:
    """One job of a stage."""

    stage: str
    path: Path

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def ended(self) -> bool:
        return (self.path / "outcome-0.json").exists()

    def progress(self) -> str:
        """`120/300, about 1:24 left`, by the pace since its first report; empty before there is one."""
        shown, seconds = StageProgress(self.stage, ""), 0.0
        shown.take({"state": "running"}, 0.0)
        for event in self._events():
            if isinstance(event.get("seconds"), int | float):
                seconds = event["seconds"]
                shown.take(event, seconds)
        left = shown.left(seconds)
        return f"{shown.steps}, about {clock(left)} left" if left is not None else shown.steps

    def _events(self) -> Iterator[dict[str, Any]]:
        try:
            *lines, _torn = (self.path / EVENTS_FILE).read_bytes().split(b"\n")
        except FileNotFoundError:
            return
        yield from json_objects(lines)


def run_folder(run: str) -> Path:
    return home() / "runs" / run


def job_folders(run: str, stage: str | None = None) -> list[JobFolder]:
    """The jobs of a run, or of one of its stages, in the order in which they were started."""
    found = sorted(run_folder(run).glob(f"{stage or '*'}/*/job.json"), key=lambda path: path.stat().st_mtime_ns)
    return [JobFolder(path.parent.parent.name, path.parent) for path in found]
