"""A training run that is killed again and again: how much of the time it took went into steps that count?

Both arms train one workload to its last step, are killed (SIGKILL to the rank) and started again at once:

- `forgeline`: a job of `LocalLauncher` (`goodput_forgeline.py`), snapshots stored beside the training;
- `plain`: a new Python process each time (`goodput_plain.py`): a bare torch loop that stops to `torch.save`.

A checkpoint is due every `interval` seconds' worth of steps; the times from a life's first step to its kill are drawn
from an exponential distribution with mean 10 intervals, the same for both. Both write a line per step to `steps.jsonl`
with the machine's monotonic clock. Losses of a step must agree over lives and arms, or nothing may be compared.

Wall time of a training falls into: the first start, useful steps at the median pace of undisturbed steps, what steps
beside a checkpoint took longer (`saving`), steps made again (`redone`), noticing a death (`detect`), coming back
(`restart`, up to the begin of the first step), and what is left over, the other steps' deviation from the median.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from infra.launch.launcher import JobSpec
from infra.launch.local import LocalLauncher
from tests.bench.workload import Workload

ROOT = Path(__file__).parents[2]
PRELOAD = ("tasks.training.loop.train", "tasks.training.engine.engine")
INTERVALS_BETWEEN_FAILURES = 10
PATIENCE = 180.0
POLL_SECONDS = 0.005
WARMING_STEPS = 2
"""A process's first steps are slower; they do not tell the undisturbed pace."""


class TrainingFailed(RuntimeError):
    """A training did not come on; ends with its log."""


class Running(Protocol):
    """A training run under way."""

    def ended(self, timeout: float) -> int | None:
        """Exit code once it is noticed that the training has ended, None if that takes longer."""
        ...

    def log(self) -> str: ...


class ForgelineRun:
    """A job of the local launcher."""

    def __init__(self, launcher: LocalLauncher, folder: Path, threads: int) -> None:
        entry = "tests.bench.goodput_forgeline:main"
        environment = {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
        self.job = launcher.submit(JobSpec("goodput", folder, entry, threads=threads, warm=True, env=environment))

    def ended(self, timeout: float) -> int | None:
        return self.job.wait(timeout)

    def log(self) -> str:
        return self.job.logs()


class PlainRun:
    """A Python process."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.output = folder / "plain.txt"
        with self.output.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.goodput_plain", str(folder)],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

    def ended(self, timeout: float) -> int | None:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def log(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")[-4000:]


@dataclass(frozen=True)
class Mark:
    """A finished step of one life. `when` is "quiet" only if no checkpoint had to do with it."""

    step: int
    loss: float
    at: float
    when: str
    snapshots: int
    pid: int


@dataclass(frozen=True)
class Life:
    """From a submit to the moment the end was noticed. `killed`: when, None for the last one."""

    submitted: float
    killed: float | None
    noticed: float
    marks: list[Mark]


def train_under_kills(start: Callable[[], Running], folder: Path, gaps: Callable[[], float]) -> list[Life]:
    """Start, kill and start again until the training ends by itself."""
    lives: list[Life] = []
    while True:
        submitted = time.monotonic()
        seen = len(read_marks(folder))
        run = start()
        deadline = submitted + PATIENCE
        while (code := run.ended(POLL_SECONDS)) is None and len(read_marks(folder)) == seen:
            if time.monotonic() > deadline:
                raise TrainingFailed(f"no step within {PATIENCE:.0f} s\n{run.log()}")
        if code is None:
            first = read_marks(folder)[seen]
            code = run.ended(max(0.0, first.at + gaps() - time.monotonic()))
        if code is not None:
            if code:
                raise TrainingFailed(f"ended with code {code} although nobody killed it\n{run.log()}")
            lives.append(Life(submitted, None, time.monotonic(), read_marks(folder)[seen:]))
            return lives
        killed = time.monotonic()
        os.kill(first.pid, signal.SIGKILL)
        if run.ended(PATIENCE) is None:
            raise TrainingFailed(f"its death was not noticed within {PATIENCE:.0f} s\n{run.log()}")
        lives.append(Life(submitted, killed, time.monotonic(), read_marks(folder)[seen:]))


def read_marks(folder: Path) -> list[Mark]:
    path = folder / "steps.jsonl"
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n") if path.exists() else ("", "", "")
    # A line the kill cut in two is followed by those of the next life.
    return [Mark(**json.loads(line)) for line in whole.splitlines() if line.startswith("{") and line.endswith("}")]


def play(seed: int, work_seconds: float, interval: float, folder: Path) -> dict[str, Any]:
    """Both arms' lives under the same drawn gaps, and what they trained."""
    threads = len(os.sched_getaffinity(0))
    workload = Workload(hidden=256, layers=2, vocabulary=2048, context=64, batch=4)

    def prepare(name: str, steps: int, every: int) -> Path:
        place = folder / name
        place.mkdir(parents=True)
        plan = {"workload": asdict(workload), "steps": steps, "every": every}
        (place / "run.json").write_text(json.dumps(plan), encoding="utf-8")
        return place

    trial = prepare("pace", 40, 1_000_000)
    pace = quiet_seconds(train_under_kills(lambda: PlainRun(trial, threads), trial, lambda: PATIENCE))
    every, steps = max(1, round(interval / pace)), max(10, round(work_seconds / pace))
    between = INTERVALS_BETWEEN_FAILURES * every * pace

    def gaps() -> Callable[[], float]:
        drawn = random.Random(seed)
        return lambda: drawn.expovariate(1.0 / between)

    place = prepare("plain", steps, every)
    plain = train_under_kills(lambda: PlainRun(place, threads), place, gaps())
    ours = prepare("forgeline", steps, every)
    (folder / "servers").mkdir()
    launcher = LocalLauncher(folder / "servers", preload=PRELOAD)
    try:
        lives = train_under_kills(lambda: ForgelineRun(launcher, ours, threads), ours, gaps())
    finally:
        launcher.close()
    return {"forgeline": lives, "plain": plain, "steps": steps, "every": every, "between": between}


def quiet_seconds(lives: list[Life]) -> float:
    """Median time of a step that no checkpoint had to do with."""
    found = [
        later.at - earlier.at
        for life in lives
        for earlier, later in zip(life.marks[WARMING_STEPS:], life.marks[WARMING_STEPS + 1 :], strict=False)
        if later.when == "quiet"
    ]
    if not found:
        raise TrainingFailed("not one step was free of checkpoints: the interval is too short")
    return statistics.median(found)
