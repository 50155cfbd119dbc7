"""What the time of one job was spent on, read from the files it leaves in its folder, however it ended.

`phases.json` says when the job had started, fetched its inputs, run and committed; `metrics.jsonl` has every step of a
training, with its seconds, its wait for data and for checkpoints. A training's totals are laid out one after another
within its run (loading, repeated steps, waits, useful steps, end), not where in it they were.
"""

from __future__ import annotations

import contextlib
from array import array
from pathlib import Path
from typing import Any

from infra.json_values import parse_json
from infra.tail import Tail
from infra.tracking import Row, parse_line
from tasks.run.worker import METRICS_FILE, PHASES_FILE

RUNNING, OK, PREEMPTED, FAILED = "running", "ok", "preempted", "failed"


class JobTimes:
    """Reads on where it stopped, so it may be asked as often as one likes. All times in seconds.

    furthest: the last step that earlier jobs of this training made; steps up to it are made again.
    """

    def __init__(self, folder: Path, furthest: int = 0) -> None:
        self.folder, self.furthest = folder, furthest
        self.steps = array("d")
        """What each step that was made for the first time took, without its wait for a checkpoint."""
        self._tail = Tail(folder / METRICS_FILE)
        self._repeated = self._waited = self._stalled = self._last = 0.0
        self._loaded: float | None = None

    def spans(self, length: float, how: str) -> list[tuple[str, float]]:
        """(bucket, seconds) in their order, `length` seconds in all: from the job's submission to its end, or to now.

        A phase that did not end lasted to the end of the job. Work that is not kept was for nothing: a job that did
        not end well, but for the steps of a training run.
        """
        self._read()
        ended, marks = self._phases(), [0.0]
        for phase in ("started", "fetched", "ran", "committed"):
            marks.append(min(max(ended.get(phase, length), marks[-1]), length))
        _, _, fetched, ran, committed = marks
        run = self._run(ran - fetched, how)
        return [("startup", fetched), *run, ("commit", committed - ran), ("other", length - committed)]

    def _run(self, length: float, how: str) -> list[tuple[str, float]]:
        kept = "useful" if how in (OK, RUNNING) else "recomputed"
        if self._loaded is None:
            return [(kept, length)]
        left, found = length, []
        # What follows the last step of a training run that was asked to stop is its last checkpoint.
        end = ("checkpoint_stall" if how == PREEMPTED else kept, max(0.0, length - self._last))
        shares = (
            ("startup", self._loaded),
            ("recomputed", self._repeated),
            ("data_wait", self._waited),
            ("checkpoint_stall", self._stalled),
            end,
        )
        for bucket, seconds in shares:
            found.append((bucket, min(seconds, left)))
            left -= found[-1][1]
        return [*found[:-1], ("useful", left), found[-1]]

    def _read(self) -> None:
        while lines := self._tail.lines():
            for line in lines:
                with contextlib.suppress(ValueError):  # a line that was torn by a kill
                    row = parse_line(line)
                    if isinstance(row, Row):
                        self._take(row)

    def _take(self, row: Row) -> None:
        self._last = row.seconds
        if not {"data_wait", "seconds"} <= row.values.keys():
            return  # an evaluation
        wait, stall = row.values["data_wait"], row.values.get("checkpoint_stall", 0.0)
        seconds = row.values["seconds"]
        if self._loaded is None:
            self._loaded = max(0.0, row.seconds - seconds)
        self._waited += wait
        self._stalled += stall
        if row.step > self.furthest:
            self.furthest = row.step
            self.steps.append(seconds - stall)
        else:
            self._repeated += max(0.0, seconds - wait - stall)

    def _phases(self) -> dict[str, float]:
        found = _read(self.folder / PHASES_FILE)
        return {name: seconds for name, seconds in found.items() if isinstance(seconds, int | float)}


def furthest_step(folder: Path) -> int:
    """The last step that earlier jobs of the training in this job folder reached, in any run kept beside this one.

    Jobs that ended well do not count: if their work is asked for again, it was not for want of a checkpoint.
    """
    ours, found = _training(folder), 0
    for job in folder.parents[2].glob(f"*/{folder.parent.name}/*/job.json"):
        other = job.parent
        if other != folder and _training(other) == ours and _read(other / "outcome-0.json").get("status") != "ok":
            times = JobTimes(other)
            times.spans(0.0, FAILED)
            found = max(found, times.furthest)
    return found


def _training(folder: Path) -> tuple[Any, Any, Any]:
    job = _read(folder / "job.json")
    return job.get("store"), job.get("kind"), job.get("key")


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where it is not there, or is damaged: that costs a figure and nothing else."""
    with contextlib.suppress(OSError, ValueError):
        found = parse_json(path.read_bytes())
        return found if isinstance(found, dict) else {}
    return {}
