"""A run whose store is away: for seconds it is waited for; gone for good, the run says how it ended all the same.

The stages run as a flow would run them, in jobs, without Prefect. The store is a folder that is moved elsewhere, as a
disk is that is not mounted any more.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import prefect  # noqa: F401 - so that no stage begins before `World.in_order` says so
import pytest

from flows import cli
from flows.live import LiveView
from flows.monitor import Monitor
from infra.artifacts import ArtifactRef
from infra.errors import ForgelineError
from infra.open_store import open_store
from infra.process_id import this_process
from infra.store import Store
from tasks.pipeline.dag import Pipeline
from tasks.run.context import RunContext
from tasks.run.execute import execute_stage
from tasks.run.record import read_run
from tasks.run.unsaved_records import UNSAVED, deliver, keep

PIPELINE = """
name: away
stages:
  rows:
    dataset:
      sources: [{files: "data/*.jsonl", format: jsonl}]
      split: {by: row, validation: 0, test: 0}
  words: {tokenizer: {data: rows, vocab_size: 100000}}
"""
TOO_LARGE = "the data yields only"
Said = tuple[int, dict[str, Any], str]


class Disk:
    """The store's folder, which can be elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.elsewhere = folder, folder.with_name("elsewhere")
        self.left = 0

    def leave(self) -> None:
        self.folder.rename(self.elsewhere)
        self.left += 1

    def come_back(self) -> None:
        if self.elsewhere.exists():
            self.elsewhere.rename(self.folder)


class World:
    """What happens meanwhile: around a stage, before its job and while it is at work, on each message."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.before: Callable[[str, Store], None] = lambda stage, store: None
        self.after: Callable[[str], None] = lambda stage: None
        self.on_job: Callable[[Path], None] = lambda folder: None
        self.on_poll: Callable[[], None] = lambda: None
        self.on_message: Callable[[str], None] = lambda text: None
        self.run: Callable[[], Said]

    def in_order(
        self,
        pipeline: Pipeline,
        known: dict[str, ArtifactRef],
        context: RunContext,
        monitor: Monitor,
        head_start: object = None,
    ) -> None:
        """In place of Prefect's flow: one stage after the other, up to the first that fails."""

        def notify(stage: str, **news: Any) -> None:
            monitor.notify(stage, **news)
            if news.get("state") == "running":
                self.on_job(news["folder"])
            if news.get("poll"):
                self.on_poll()

        context.notify = notify
        for node in pipeline.stages.values():
            self.before(node.name, context.store)
            result: Any
            try:
                result = execute_stage(node, known, context)
                known[node.name] = result.manifest.ref
            except ForgelineError as error:
                result = error
            self.after(node.name)
            monitor.end(node.name, result)
            if isinstance(result, ForgelineError):
                return


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> World:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.jsonl").write_text("".join(f'{{"text": "row {i} of the data"}}\n' for i in range(9)))
    (tmp_path / "p.yaml").write_text(PIPELINE)
    for name, value in {"HOME": "home", "STORE": "store", "CACHE": "cache"}.items():
        monkeypatch.setenv(f"FORGELINE_{name}", str(tmp_path / value))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    world, message = World(Disk(tmp_path / "store")), LiveView.message

    def tell(view: LiveView, text: str) -> None:
        message(view, text)
        world.on_message(text)

    def run() -> Said:
        code = cli.main(["run", str(tmp_path / "p.yaml"), "--store", str(world.disk.folder), "--json"])
        out, err = capfd.readouterr()
        return code, json.loads(out), err

    monkeypatch.setattr(LiveView, "message", tell)
    monkeypatch.setitem(sys.modules, "flows.pipeline", SimpleNamespace(run_with_prefect=world.in_order))
    world.run = run
    return world


def outcome(record: dict[str, Any]) -> list[tuple[str, str]]:
    return [(stage["name"], stage["action"]) for stage in record["stages"]]


def test_an_outage_of_seconds_ends_no_run(world: World) -> None:
    """Away when a stage begins, when its job is at work, and when it is noted down."""
    world.after = lambda stage: world.disk.leave() if stage == "rows" else None
    world.before = lambda stage, store: world.after(stage)
    logs = list[Path]()

    def a_job_starts(folder: Path) -> None:
        if folder.parent.name == "words":
            logs.append(folder / "log.txt")
            world.disk.leave()

    def away(text: str) -> bool:
        return "the store is away and waited for, 60 s at most: the folder of the store is gone" in text

    world.on_message = lambda text: world.disk.come_back() if away(text) and not logs else None
    world.on_job = a_job_starts
    world.on_poll = lambda: world.disk.come_back() if logs and away(logs[0].read_text()) else None
    code, said, err = world.run()
    assert (code, outcome(said)) == (3, [("rows", "run"), ("words", "failed")]) and TOO_LARGE in err
    assert world.disk.left == 3
    assert read_run(open_store(str(world.disk.folder)), "latest")["status"] == "failed"


def test_a_store_that_is_gone_at_the_end_takes_no_last_words(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("FORGELINE_STORE_WAIT", "0.2")
    world.after = lambda stage: world.disk.leave() if stage == "words" else None
    code, said, err = world.run()
    assert (code, said["status"], outcome(said)) == (3, "failed", [("rows", "run"), ("words", "failed")])
    assert TOO_LARGE in said["stages"][1]["error"]["what"]
    assert TOO_LARGE in err and "vocab_size to" in err
    assert "the store did not take the record of this run: the folder of the store is gone" in err
    assert "report: " in err
    kept = tmp_path / "home/runs" / said["run"] / UNSAVED
    assert kept.exists()

    world.disk.come_back()
    store = open_store(str(world.disk.folder))
    assert read_run(store, said["run"])["status"] == "running"
    assert cli.main(["status"]) == 0
    assert f"{said['run']}: failed" in capfd.readouterr().out and not kept.exists()
    assert outcome(read_run(store, said["run"])) == outcome(said)
    assert deliver(tmp_path / "home", store) == []


def test_a_store_that_is_gone_between_two_stages_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGELINE_STORE_WAIT", "0.2")

    def look(stage: str, store: Store) -> None:
        if stage == "words":
            world.disk.leave()
            store.exists("runs/x")

    world.before = look
    code, said, err = world.run()
    assert (code, said["status"], said["stopped"]) == (3, "failed", "the folder of the store is gone")
    assert outcome(said) == [("rows", "run"), ("words", "skipped")]
    assert "the run could not go on: the folder of the store is gone" in err


def test_a_record_of_another_store_is_left_alone(world: World, tmp_path: Path) -> None:
    kept = tmp_path / "home/runs/one" / UNSAVED
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps({"store": "s3://another/one", "run": "one", "record": "{}"}))
    (tmp_path / "home/runs/two").mkdir()
    (tmp_path / "home/runs/two" / UNSAVED).write_text("torn")
    store = open_store(str(world.disk.folder))
    alive = json.dumps({"status": "running", "process": this_process()})
    keep(tmp_path / "home/runs/three", store, "three", alive.encode())
    assert deliver(tmp_path / "home", store) == [] and kept.exists(), "three lives and stores its record itself"
    keep(tmp_path / "home/runs/three", store, "three", alive.replace("running", "ok").encode())
    assert deliver(tmp_path / "home", store) == ["three"]
