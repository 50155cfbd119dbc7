"""One training and its data through the real command line: its ledger, a budget that stops it, its logs, its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.checkpoints import CheckpointStore
from infra.open_store import open_store
from infra.tracking import read_metrics
from tasks.run.record import read_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
STAGES = ("corpus", "tokenizer", "tokens", "base")
ROOT = Path(__file__).parents[2]


class Project:
    """A pipeline of four stages in a folder, and the commands on it."""

    def __init__(self, chain: Any, folder: Path, api: str) -> None:
        self.chain, self.folder, self.api = chain, folder, api
        self.file: Path = chain.write_project(folder / "project")
        data = yaml.safe_load(self.file.read_text())
        data["stages"] = {name: data["stages"][name] for name in STAGES}
        self.file.write_text(yaml.safe_dump(data))
        self.store, self.home = open_store(str(folder / "store")), folder / "home"
        self.runs: list[Any] = []

    def run(self, *overrides: str) -> Any:
        environment = {"PREFECT_API_URL": self.api, "TINY_TRACKING": "offline"}
        self.runs.append(self.chain.Forgeline(self.file, self.store.url, self.home, *overrides, **environment))
        return self.runs[-1]

    def start(self, *command: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "FORGELINE_HOME": str(self.home), "PYTHONPATH": str(ROOT)}
        arguments = [sys.executable, "-m", "flows.cli", *command, "--store", self.store.url]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)

    def steps(self, run: str) -> list[int]:
        """Steps that the newest job of `base` has made in a run."""
        jobs = sorted((self.home / "runs" / run / "base").glob("*/metrics.jsonl"), key=lambda p: p.stat().st_mtime_ns)
        return [row.step for row in read_metrics(jobs[-1]).rows] if jobs else []

    def latest(self) -> dict[str, Any]:
        return read_run(self.store, "latest")


@pytest.fixture
def project(load: Any, api: str, tmp_path: Path) -> Iterator[Project]:
    project = Project(load("e2e/chain.py"), tmp_path, api)
    yield project
    for run in project.runs:
        run.kill()
        sys.stdout.write(run.stderr.read_text())


def until(condition: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def adds_up(record: dict[str, Any]) -> dict[str, float]:
    """The buckets of a run's ledger, of which nothing is missing."""
    buckets: dict[str, float] = record["ledger"]["buckets"]
    assert sum(buckets.values()) == pytest.approx(record["seconds"], rel=0.001)
    return buckets


def test_a_killed_rank_in_the_ledger(project: Project) -> None:
    run = project.run("stages.base.max_steps=1500", "execution.default.checkpoint.every=100")
    until(lambda: project.store.list("runs"))
    name = project.store.list("runs")[0]
    until(lambda: max(project.steps(name), default=0) >= 250)
    (rank,) = project.chain.ranks(run)
    rank.send_signal(signal.SIGKILL)
    result = run.end().must(0)
    record = project.latest()
    buckets, base = adds_up(record), record["ledger"]["stages"]["base"]
    assert base["steps"] == 1500, "each counts once"
    assert base["buckets"]["recomputed"] > 0 and base["buckets"]["checkpoint_stall"] > 0
    assert buckets["useful"] >= 0.5 * 1500 * base["step_seconds"]
    assert record["ledger"]["goodput"] == pytest.approx(buckets["useful"] / record["seconds"], abs=1e-3)
    # One core was held for as long as the stages' jobs ran.
    queued = sum(stage["buckets"].get("queue", 0) for stage in record["ledger"]["stages"].values())
    busy = sum(sum(stage["buckets"].values()) for stage in record["ledger"]["stages"].values()) - queued
    assert record["ledger"]["core_seconds"] == pytest.approx(busy, rel=0.01)

    assert "of the time was useful work" in (project.home / "reports" / f"{name}.html").read_text()
    question = json.dumps({"artifacts": {"key": {"any_": ["tiny-ledger"]}}}).encode()
    request = urllib.request.Request(f"{project.api}/artifacts/filter", question, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        (artifact,) = json.load(answer)
    assert name in artifact["description"] and "recomputed" in artifact["data"]

    again = project.run("stages.base.max_steps=1500").end().must(0)
    assert set(again.actions.values()) == {"reuse"}
    saved = project.latest()["ledger"]["saved_by_reuse"]
    made = [project.store.manifest(s["kind"], s["artifact"]["key"]).timings for s in result.json["stages"]]
    assert saved == pytest.approx(sum(one["fetch"] + one["run"] for one in made), abs=0.01)


def test_a_budget_stops_a_training_which_then_goes_on_and_is_cancelled(project: Project) -> None:
    many = "stages.base.max_steps=100000"
    budget = ("budget.core_hours=0.008", "budget.reserve=5", "budget.price_per_core_hour=3.6")
    project.run(many, *budget).end().must(75)
    stopped = project.latest()
    base = next(entry for entry in stopped["stages"] if entry["name"] == "base")
    assert stopped["status"] == "interrupted" and stopped["stopped"].startswith("the budget of 0.008 core hours")
    assert "stopped by the budget" in base["error"]["what"]
    adds_up(stopped)
    spent = stopped["ledger"]["core_seconds"]
    assert 18.0 < spent < 28.8, "before it overspends, and not long before"
    assert stopped["ledger"]["cost"] == pytest.approx(spent * 0.001, abs=1e-3)
    job = json.loads(next((project.home / "runs" / stopped["run"] / "base").glob("*/job.json")).read_text())
    saved = max(CheckpointStore(project.store, "pretrain", job["key"]).steps())
    assert saved == max(project.steps(stopped["run"])) == stopped["ledger"]["stages"]["base"]["steps"]

    run = project.run(many)
    until(lambda: len(project.store.list("runs")) == 2)
    name = project.store.list("runs")[1]
    logs = project.start("logs", "latest", "-f")
    until(lambda: len(project.steps(name)) > 200)
    assert min(project.steps(name)) == saved + 1, "nothing is done twice"
    shown = project.start("status").communicate()[0]
    assert f"/{100000}" in shown and "left" in shown and f"{name}: running on {socket.gethostname()}" in shown
    cancelled = project.start("cancel", "latest")
    assert f"run {name} ended: interrupted, 3 of 4 stages done" in cancelled.communicate(timeout=90)[0]
    assert cancelled.returncode == 0
    run.end().must(130)
    assert "base | Preempted: stages.base: stopped on request" in logs.communicate(timeout=30)[0]
    assert logs.returncode == 0 and not run.processes()
    assert adds_up(project.latest())["recomputed"] == 0
