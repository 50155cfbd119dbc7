"""A rank of a gang of two is killed: how long until the gang, started again from a checkpoint, has made a step?

    python -m tests.bench.relaunch [--pairs 5]                (prints JSON; a pair takes half a minute)

Forgeline: `LocalLauncher` with its warm server, as a run has it; the job's end is awaited and the job submitted again.
The flow's own back-off before another attempt (`tasks/run/prefect_task.py`) is not in it. Opponent: `torchrun --standalone
--max-restarts 1` with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, the surest way to have it recover: with a static rendezvous
the restarted ranks at times look for the dead ones' addresses until they give up.

Both run `relaunch_rank.py` on one thread a rank from a copy of one saved state, so that what is restored and computed
is the same; the loss of the first step after the relaunch must be that of the same step before the kill, and equal in
both. Rounds take turns, ours first in every other pair. The clock runs from just before SIGKILL to the end of that step.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from infra.checkpoints import CheckpointStore
from infra.launch.launcher import JobSpec
from infra.launch.local import LocalJob, LocalLauncher
from infra.open_store import open_store

ROOT = Path(__file__).parents[2]
BAR = 0.25
RANKS = 2
STEPS_BEFORE = 5
PATIENCE = 180.0
LOSS_TOLERANCE = 1e-5
PRELOAD = ("tasks.training.loop.train", "tasks.training.engine.engine")
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "OMP_WAIT_POLICY": "PASSIVE"}


class RoundFailed(RuntimeError):
    """A gang did not come (back) to a step; ends with its log."""


class Gang(Protocol):
    """Two ranks under some launcher."""

    def after_kill(self) -> None:
        """Do what has to be done so that the gang is started again."""
        ...

    def stop(self) -> None:
        """End every process of it."""
        ...

    def log(self) -> str:
        """The end of what it wrote."""
        ...


class ForgelineGang:
    """A job of the local launcher, submitted again when it has ended."""

    def __init__(self, launcher: LocalLauncher, folder: Path) -> None:
        self.launcher = launcher
        self.spec = JobSpec("relaunch", folder, "tests.bench.relaunch_rank:main", RANKS, warm=True, env=ENVIRONMENT)
        self.job: LocalJob = launcher.submit(self.spec)

    def after_kill(self) -> None:
        if self.job.wait(PATIENCE) is None:
            raise RoundFailed(f"the job with a killed rank did not end\n{self.log()}")
        self.job = self.launcher.submit(self.spec)

    def stop(self) -> None:
        self.job.cancel()

    def log(self) -> str:
        return self.job.logs()


class TorchrunGang:
    """`torchrun`, which starts its ranks again by itself."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "torchrun.txt"
        options = ["--standalone", f"--nproc-per-node={RANKS}", "--max-restarts=1"]
        script = Path(__file__).with_name("relaunch_rank.py")
        with self.output.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *options, str(script), str(folder)],
                cwd=ROOT,
                env={**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def after_kill(self) -> None:
        """Nothing: it notices by itself."""

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")[-4000:]


@dataclass(frozen=True)
class Round:
    """One kill. handled: until `after_kill` returned; losses of the same step before and after."""

    seconds: float
    handled: float
    step: int
    losses: tuple[float, float]


def marks(folder: Path) -> list[dict[str, Any]]:
    """Finished steps so far, oldest first."""
    path = folder / "steps.jsonl"
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def wait_for(what: Callable[[], Any], gang: Gang, missing: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := what()):
        if time.monotonic() > deadline:
            raise RoundFailed(f"{missing} within {PATIENCE:.0f} s\n{gang.log()}")
        time.sleep(0.02)
    return found


def play(start: Callable[[Path], Gang], folder: Path) -> Round:
    """Let a gang resume in `folder`, kill its last rank, and wait for its first step after that."""
    gang = start(folder)
    try:
        before = wait_for(lambda: marks(folder)[STEPS_BEFORE - 1 :] and marks(folder), gang, "no step was made")
        victim = int((folder / f"rank-{RANKS - 1}.pid").read_text(encoding="utf-8"))
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        gang.after_kill()
        handled = time.monotonic() - killed

        def again() -> list[dict[str, Any]]:
            return [mark for mark in marks(folder) if mark["pid"] != before[0]["pid"]]

        first = wait_for(again, gang, "no step after the relaunch")[0]
    finally:
        gang.stop()
    if first["step"] != before[0]["step"]:
        raise RoundFailed(f"resumed at step {first['step']}, not {before[0]['step']}: nothing was restored")
    return Round(first["at"] - killed, handled, first["step"], (before[0]["loss"], first["loss"]))


def save_state(launcher: LocalLauncher, folder: Path) -> Path:
    """A store with a checkpoint that two ranks left on their way."""
    prepare(folder, every=20)
    gang = ForgelineGang(launcher, folder)
    checkpoints = CheckpointStore(open_store(str(folder / "store")), "kind", "0" * 64)
    try:
        wait_for(checkpoints.steps, gang, "no checkpoint was committed")
    finally:
        gang.stop()
    return folder / "store"


def prepare(folder: Path, every: int, store: Path | None = None) -> None:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"every": every}), encoding="utf-8")
    if store is not None:
        shutil.copytree(store, folder / "store")


def measure(pairs: int) -> dict[str, Any]:
    """Medians, every single time, and whether the arms did the same. `ratio`: Forgeline's seconds over torchrun's."""
    with tempfile.TemporaryDirectory(prefix="forgeline-bench-") as name:
        folder = Path(name)
        launcher = LocalLauncher(folder / "servers", preload=PRELOAD)
        try:
            store = save_state(launcher, folder / "saved")
            arms: dict[str, Callable[[Path], Gang]] = {
                "forgeline": lambda place: ForgelineGang(launcher, place),
                "torchrun": TorchrunGang,
            }
            rounds: dict[str, list[Round]] = {arm: [] for arm in arms}
            for pair in range(pairs):
                for arm in arms if pair % 2 == 0 else reversed(arms):
                    place = folder / f"{pair}-{arm}"
                    prepare(place, every=10**9, store=store)
                    rounds[arm].append(play(arms[arm], place))
                    shutil.rmtree(place, ignore_errors=True)
        finally:
            launcher.close()
    seconds = {arm: [each.seconds for each in found] for arm, found in rounds.items()}
    ratios = [ours / theirs for ours, theirs in zip(seconds["forgeline"], seconds["torchrun"], strict=True)]
    losses = [loss for found in rounds.values() for each in found for loss in each.losses]
    return {
        "row": "relaunch",
        "bar": BAR,
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "ratios": ratios,
        "forgeline_seconds": seconds["forgeline"],
        "forgeline_gone_seconds": [each.handled for each in rounds["forgeline"]],
        "torchrun_seconds": seconds["torchrun"],
        "first_step": rounds["forgeline"][0].step,
        "largest_loss_difference": max(losses) - min(losses),
        "incomparable": "" if max(losses) - min(losses) <= LOSS_TOLERANCE else "the first step's losses differ",
    }


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.relaunch", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    found = measure(parser.parse_args(words).pairs)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return 0 if found["ratio"] <= BAR and not found["incomparable"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
