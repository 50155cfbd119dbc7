"""W&B gets what the metrics file holds, from a process of its own, and can neither stop nor slow a job."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from infra.tracking import JobTracker, TrackingSettings
from infra.wandb_replay import WandbReplay

CANARY = "canary-4f9a77-do-not-store"


def inspect(folder: Path) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def write_metrics(path: Path, steps: int) -> list[float]:
    """Log like a training loop does; returns seconds per call."""
    tracker, seconds = JobTracker(path), []
    for step in range(steps):
        started = time.perf_counter()
        tracker.log(step, {"loss": 1 / (step + 1)})
        seconds.append(time.perf_counter() - started)
    tracker.summary({"validation_loss": 0.25})
    tracker.close()
    return seconds


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SOME_SECRET", CANARY)
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def test_two_jobs_become_two_offline_runs_of_one_group(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["forgeline", "run", f"--token={CANARY}"])
    replay = WandbReplay(TrackingSettings(), project="proj", group="run-7", folder=clean)
    for name, kind in (("base", "pretrain"), ("teacher", "finetune")):
        replay.follow(clean / f"{name}.jsonl", name=name, job_type=kind, config={"learning_rate": 3e-4})
    replay.follow(clean / "never.jsonl", name="corpus", job_type="dataset", config={})
    write_metrics(clean / "base.jsonl", 300)
    replay.end(clean / "base.jsonl")
    write_metrics(clean / "teacher.jsonl", 3)
    replay.end(clean / "teacher.jsonl")
    started = time.monotonic()
    assert replay.close(60.0) == []
    sys.stdout.write(f"W&B was done {time.monotonic() - started:.1f} s after the run\n")

    base, teacher = (inspect(next((clean / "wandb").glob(f"offline-run-*run-7-{n}"))) for n in ("base", "teacher"))
    assert "train/step       299" in base and "validation_loss  0.25" in base and "learning_rate" in base
    assert "train/step       2" in teacher and "finished (exit code 0)" in teacher
    assert len(list((clean / "wandb").glob("offline-run-*"))) == 2, "a job without metrics needs no W&B run"
    for path in clean.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path


def test_unreachable_wandb_neither_stops_nor_slows_a_job(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    replay = WandbReplay(TrackingSettings(), project="proj", group="g", folder=clean)
    replay.follow(clean / "a.jsonl", name="a", job_type="pretrain", config={})
    replay.follow(clean / "b.jsonl", name="b", job_type="finetune", config={})
    seconds = sorted(write_metrics(clean / "a.jsonl", 1000))
    write_metrics(clean / "b.jsonl", 1)
    sys.stdout.write(f"log(): median {seconds[500] * 1e6:.0f} us, worst {seconds[-1] * 1e3:.1f} ms\n")
    assert seconds[500] < 0.001
    (warning,) = replay.close(60.0)
    assert "cannot be reached" in warning and "wandb sync" in warning
    assert "train/step       999" in inspect(next((clean / "wandb").glob("offline-run-*-a")))
    assert b"0" * 40 not in (clean / "wandb.log").read_bytes()


def test_a_dead_replay_loses_nothing_and_can_be_repeated(clean: Path) -> None:
    replay = WandbReplay(TrackingSettings(), project="proj", group="g", folder=clean)
    replay.follow(clean / "a.jsonl", name="a", job_type="pretrain", config={})
    assert replay._process is not None
    replay._process.kill()
    write_metrics(clean / "a.jsonl", 50)
    replay.end(clean / "a.jsonl")
    (warning,) = replay.close()
    assert "complete in the run's own files" in warning
    command = [sys.executable, "-m", "infra.wandb_replay", str(clean)]
    subprocess.run(command, stdin=subprocess.DEVNULL, check=True, timeout=60)
    assert "train/step       49" in inspect(next((clean / "wandb").glob("offline-run-*-a")))


def test_nothing_outlives_a_killed_orchestrator(clean: Path) -> None:
    script = f"""
import sys, time
from pathlib import Path
from infra.tracking import *
from infra.wandb_replay import WandbReplay
folder = Path({str(clean)!r})
replay = WandbReplay(TrackingSettings(), project="p", group="g", folder=folder)
replay.follow(folder / "a.jsonl", name="a", job_type="pretrain", config={{}})
JobTracker(folder / "a.jsonl").log(1, {{"loss": 1.0}})
time.sleep(60)
"""
    orchestrator = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 60
    while not list(clean.glob("wandb/offline-run-*/*.wandb")) and time.monotonic() < deadline:
        time.sleep(0.05)
    processes = psutil.Process(orchestrator.pid).children(recursive=True)
    assert len(processes) >= 2  # ours and W&B's service
    orchestrator.kill()
    orchestrator.wait()
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive


def test_disabled_does_nothing(clean: Path) -> None:
    replay = WandbReplay(TrackingSettings(mode="disabled"), project="p", group="g", folder=clean)
    replay.follow(clean / "a.jsonl", name="a", job_type="pretrain", config={})
    assert replay.close() == [] and list(clean.iterdir()) == []
