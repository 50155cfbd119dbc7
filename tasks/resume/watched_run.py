"""One training run for `tasks/resume/check.py`: watched from its launch to its end, or to its kill.

So that a kill comes at the same step on every machine, a job that is to be killed checkpoints, takes some steps more
and then stands still until it is killed, as soon as that checkpoint is committed. The kill is SIGKILL to every
process of the job. Rank 0 leaves word beside the job file: `first-step.json`, and `standing.json` when it stands still.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from infra.checkpoints import CheckpointStore
from infra.errors import StageError
from infra.launch.launcher import JobSpec
from infra.launch.local import LocalJob, LocalLauncher
from tasks.run import worker

COMMIT_SECONDS = 600.0
FIRST_STEP, STANDING = "first-step.json", "standing.json"


class WatchedRun:
    """Launches one stage's job and watches it. Serves as the `launcher` and the `notify` of a `RunContext`.

    checkpoints: where the job commits them. kill_after: kill the job once the checkpoint of this step, or a later one,
    is committed and the job stands still; 0: let it run to its end.
    """

    def __init__(self, launcher: LocalLauncher, checkpoints: CheckpointStore, kill_after: int) -> None:
        self.launcher, self.checkpoints, self.kill_after = launcher, checkpoints, kill_after
        self.killed = False
        self.launched = 0.0
        """Wall clock, like the times in what rank 0 leaves."""

    def prestart(self, warm: bool = False) -> None:
        self.launcher.prestart(warm)

    def submit(self, spec: JobSpec) -> LocalJob:
        entry = stand_still if self.kill_after else run_to_the_end
        self.launched = time.time()
        self.spec = replace(spec, entry=f"{entry.__module__}:{entry.__name__}")
        self.job = self.launcher.submit(self.spec)
        return self.job

    def close(self) -> None:
        """The launcher is shared, and whoever made it closes it."""

    @property
    def first_step(self) -> dict[str, Any]:
        """What rank 0 left after the first step of this run."""
        return self._word(FIRST_STEP)

    @property
    def standing(self) -> dict[str, Any]:
        """What rank 0 left when it stood still."""
        return self._word(STANDING)

    def notify(self, stage: str, *, poll: bool = False, **_: object) -> None:
        """Called by `execute_stage` while the job runs."""
        if not poll or self.killed or not (self.kill_after and (self.spec.folder / STANDING).exists()):
            return
        if any(step >= self.kill_after for step in self.checkpoints.steps()):
            assert self.job.pid is not None, "a job that left a word has answered"
            self.killed = True
            for process in psutil.Process(self.job.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):  # one that ended with those killed before it
                    process.kill()
        elif time.time() - self.standing["time"] > COMMIT_SECONDS:
            raise StageError(
                f"no checkpoint of step {self.kill_after} or later was committed within {COMMIT_SECONDS:.0f} s",
                where=f"stage {stage}",
                hint=f"Log: {self.spec.log}\n{self.job.logs()[-2000:]}",
            )

    def _word(self, name: str) -> dict[str, Any]:
        path = self.spec.folder / name
        if not path.exists():
            raise StageError(f"rank 0 left no {name}", where=str(self.spec.folder), hint="The stage took no step.")
        word: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return word


def run_to_the_end(folder: Path) -> int:
    """Entry of a job: as `tasks.run.worker`, and leaves a word on its first step."""
    return worker.main(folder, lambda step: _first_step(folder, step))


def stand_still(folder: Path) -> int:
    """Entry of a job: as `run_to_the_end`, but some steps after its checkpoint it waits to be killed."""
    every = json.loads((folder / "job.json").read_text(encoding="utf-8"))["execution"]["checkpoint"]["every"]

    def after_step(step: int) -> None:
        _first_step(folder, step)
        if step >= every + max(1, every // 2):
            _leave_word(folder / STANDING, {"step": step, "time": time.time()})
            while True:
                time.sleep(1.0)

    return worker.main(folder, after_step)


def _first_step(folder: Path, step: int) -> None:
    if not (folder / FIRST_STEP).exists():
        cuda = sys.modules["torch"].cuda
        gpus = cuda.device_count() if cuda.is_initialized() else 0
        _leave_word(folder / FIRST_STEP, {"step": step, "time": time.time(), "gpus": gpus})


def _leave_word(path: Path, word: dict[str, Any]) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(word), encoding="utf-8")
    partial.replace(path)
