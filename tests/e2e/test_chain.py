"""The whole chain through the real command line: two kinds of store, two runs at once, kills, damage, refusals.

`FORGELINE_KILLS=20` kills that many runs instead of 2 (`make soak`); `FORGELINE_KILL_SEED` repeats a sequence.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra import refs
from infra.artifacts import ArtifactRef
from infra.checkpoints import CheckpointStore
from infra.open_store import open_store
from infra.store import Store
from tasks.pipeline.load import load_pipeline
from tasks.plan.plan import make_plan

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]
KILLS = int(os.environ.get("FORGELINE_KILLS", "2"))
NOT_REPRODUCED = {"evaluate", "gate", "promote"}  # their payloads hold measured times, or follow from them
Start = Callable[..., Any]


@dataclass
class Finished:
    """A pipeline that ran to its end on a folder store, and how long that took."""

    file: Path
    store: Path
    result: Any


@pytest.fixture(scope="module")
def chain(load: Any) -> Any:
    return load("e2e/chain.py")


@pytest.fixture(scope="module")
def project(chain: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file: Path = chain.write_project(tmp_path_factory.mktemp("project"))
    return file


@pytest.fixture(scope="module")
def finished(chain: Any, api: str, project: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    run = chain.Forgeline(project, str(folder / "store"), folder / "home", PREFECT_API_URL=api)
    return Finished(project, folder / "store", run.end().must(0))


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Store:
    """A copy of the finished run's store, to be changed."""
    return open_store(str(shutil.copytree(finished.store, tmp_path / "store")))


@pytest.fixture
def start(chain: Any, api: str, tmp_path: Path) -> Iterator[Start]:
    """Starts `forgeline run`; what is still alive at the end of the test is killed, and pytest shows what it said."""
    started: list[Any] = []

    def start(file: Path, store: str, *overrides: str, home: str = "home", **environment: str) -> Any:
        environment = {"PREFECT_API_URL": api, **environment}
        started.append(chain.Forgeline(file, store, tmp_path / home, *overrides, **environment))
        return started[-1]

    yield start
    for run in started:
        run.kill()
        say(run.stderr.read_text())


def until(condition: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


# --- to the end -------------------------------------------------------------------------------------------------------


def test_a_run_with_nothing_but_a_folder(chain: Any, project: Path, tmp_path: Path) -> None:
    """As `make run`: an ephemeral Prefect server, W&B offline. The second run starts no server at all."""
    store, home = open_store(str(tmp_path / "store")), tmp_path / "home"
    run = chain.Forgeline(project, store.url, home, TINY_TRACKING="offline")
    result = run.end().must(0)
    assert set(result.json) == {"run", "status", "stages", "stopped"} and result.json["status"] == "ok"
    kinds = {stage["kind"] for stage in result.json["stages"]}
    assert len(kinds) == 12 and set(result.actions.values()) == {"run"}
    for stage in result.json["stages"]:
        said = {"name", "kind", "action", "seconds", "artifact", "metrics", "error", "warnings", "refusal"}
        assert set(stage) == said and not stage["error"] and not stage["refusal"]
        assert store.manifest(stage["kind"], stage["artifact"]["key"]).ref == ArtifactRef(**stage["artifact"])
    production = refs.get(store, "tiny/production")
    int8 = next(stage for stage in result.json["stages"] if stage["name"] == "int8")
    assert production.artifact == ArtifactRef(**int8["artifact"])
    assert "<html" in (home / "reports" / f"{result.json['run']}.html").read_text()[:200].lower()
    assert list(home.glob("runs/*/**/offline-run-*")), "W&B has offline runs to sync"
    assert not run.processes(), "nothing stays behind"

    again = chain.Forgeline(
        project,
        store.url,
        tmp_path / "again",
        PREFECT_API_URL="http://127.0.0.1:1/api",
        PREFECT_HOME=str(tmp_path / "p"),
    ).end()
    assert set(again.must(0).actions.values()) == {"reuse"}
    assert not (tmp_path / "p").exists() and not (tmp_path / "again/prefect").exists()
    say(f"first run {result.seconds:.1f} s with an ephemeral server, second {again.seconds:.2f} s")


def test_a_run_on_s3(seaweed: Any, finished: Finished, start: Start, chain: Any, tmp_path: Path) -> None:
    environment = {**seaweed.env, "FORGELINE_CACHE": str(tmp_path / "cache")}
    url = seaweed.url("chain")
    result = start(finished.file, url, **environment).end().must(0)
    assert set(result.actions.values()) == {"run"}
    same = {
        s["name"]: s["artifact"]["digest"] for s in finished.result.json["stages"] if s["kind"] not in NOT_REPRODUCED
    }
    there = {stage["name"]: stage["artifact"]["digest"] for stage in result.json["stages"]}
    assert {name: there[name] for name in same} == same, "the store decides where, not what"
    again = start(finished.file, url, **environment).end().must(0)
    assert set(again.actions.values()) == {"reuse"}
    say(f"on S3 {result.seconds:.1f} s, again {again.seconds:.2f} s; in a folder {finished.result.seconds:.1f} s")


def test_two_runs_at_once_share_the_work(finished: Finished, start: Start, chain: Any, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    runs = [start(finished.file, store.url) for _ in range(2)]
    one, other = (run.end().must(0).actions for run in runs)
    assert {name: sorted((one[name], other[name])) for name in one} == {name: ["reuse", "run"] for name in one}
    assert [len(names) for names in chain.attempts(store).values()] == [1] * len(one)


# --- cut short --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["folder", pytest.param("s3", marks=pytest.mark.soak)])
def test_a_run_killed_at_any_moment_is_finished_by_the_next(
    where: str,
    finished: Finished,
    start: Start,
    chain: Any,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment: dict[str, str] = {}
    if where == "s3":
        seaweed = request.getfixturevalue("seaweed")
        environment = {**seaweed.env, "FORGELINE_CACHE": str(tmp_path / "cache")}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
    seed = int(os.environ.get("FORGELINE_KILL_SEED") or secrets.randbelow(1 << 32))
    say(f"{where}: {KILLS} kills, FORGELINE_KILL_SEED={seed}, moments uniform over {finished.result.seconds:.1f} s")
    drawn = random.Random(seed)
    expected = {s["name"]: s["artifact"] for s in finished.result.json["stages"] if s["kind"] not in NOT_REPRODUCED}
    for number in range(KILLS):
        moment = drawn.uniform(0, finished.result.seconds)
        url = seaweed.url(f"killed{number}") if where == "s3" else str(tmp_path / f"store{number}")
        store, home = open_store(url), f"home{number}"
        run = start(finished.file, store.url, home=home, **environment)
        time.sleep(max(0.0, run.began + moment - time.monotonic()))
        killed = run.kill()
        for manifest in chain.manifests(store):
            store.fetch(manifest)
            store.fetch_records(manifest)
        plan = make_plan(load_pipeline(finished.file, store=store.url), store)
        before = {line.node.name: line.action for line in plan}

        result = start(finished.file, store.url, home=home, **environment).end().must(0)
        follows = {"reuse": {"reuse"}, "resume": {"resume"}, "run": {"run"}, "unknown": {"run"}}
        wrong = {
            name: (before[name], action)
            for name, action in result.actions.items()
            if action not in follows[before[name]]
        }
        assert not wrong, f"kill {number} at {moment:.2f} s"
        made = {stage["name"]: stage["artifact"] for stage in result.json["stages"]}
        assert {name: made[name] for name in expected} == expected, "a resumed run ends in the same bytes"
        assert len(chain.manifests(store)) == len(made)
        done = sum(action == "reuse" for action in before.values())
        resumed = [f"{line.node.name} @ {line.step}" for line in plan if line.action == "resume"]
        say(f"kill {number} at {moment:5.2f} s: {killed} processes, {done} stages done, resumed {resumed}, ok")
        store.delete_tree("artifacts")


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_a_run_goes_on_by_itself_when_a_rank_dies_or_hangs(
    finished: Finished, start: Start, chain: Any, copy: Store, blow: signal.Signals
) -> None:
    longer = ["stages.base.max_steps=400", "execution.base.processes=2"]
    pipeline = load_pipeline(finished.file, longer, copy.url)
    key = next(line.key for line in make_plan(pipeline, copy) if line.node.name == "base")
    assert key is not None
    run = start(finished.file, copy.url, *longer)
    until(lambda: CheckpointStore(copy, "pretrain", key).steps())
    ranks = chain.ranks(run)
    assert len(ranks) == 2
    struck = time.monotonic()
    ranks[1].send_signal(blow)
    until(lambda: not any(rank.is_running() for rank in ranks), 30)
    gone = time.monotonic() - struck
    result = run.end().must(0)
    assert result.actions["base"] == "resume"
    manifest = copy.manifest("pretrain", key)
    steps = (copy.fetch_records(manifest) / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in steps] == list(range(1, 401))
    say(f"{blow.name}: the ranks were gone after {gone:.1f} s, and the same run resumed and finished")


@pytest.mark.parametrize(
    ("name", "stop"),
    [
        ("Ctrl-C", lambda pid: os.killpg(pid, signal.SIGINT)),  # a terminal tells every process
        ("SIGTERM", lambda pid: os.kill(pid, signal.SIGTERM)),  # whoever manages processes tells this one
    ],
)
def test_a_run_that_is_told_to_stop_ends_every_process_and_the_next_one_resumes(
    finished: Finished, start: Start, copy: Store, name: str, stop: Callable[[int], None]
) -> None:
    longer = "stages.base.max_steps=20000"
    pipeline = load_pipeline(finished.file, [longer], copy.url)
    key = next(line.key for line in make_plan(pipeline, copy) if line.node.name == "base")
    assert key is not None
    run = start(finished.file, copy.url, longer)
    until(lambda: CheckpointStore(copy, "pretrain", key).steps())
    assert len(run.processes()) > 3
    stop(run.process.pid)
    asked = time.monotonic()
    until(lambda: not run.processes(), 10)
    took = time.monotonic() - asked
    result = run.end().must(130)
    assert result.json["status"] == "interrupted" and result.actions["corpus"] == "reuse"
    line = next(line for line in make_plan(pipeline, copy) if line.node.name == "base")
    assert line.action == "resume"
    say(f"{name}: every process gone after {took:.1f} s, resumable at step {line.step}")


# --- damage and refusal -----------------------------------------------------------------------------------------------


def flip_a_bit(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_artifact_is_refused_and_made_again(
    finished: Finished, start: Start, chain: Any, tmp_path: Path, copy: Store
) -> None:
    onnx = next(m for m in chain.manifests(copy) if m.kind == "export")
    flip_a_bit(tmp_path / "store" / onnx.ref.prefix / onnx.attempt / "payload/model.onnx")
    result = start(finished.file, copy.url, "stages.int8.per_channel=true").end().must(0)
    ran = {name for name, action in result.actions.items() if action == "run"}
    assert ran == {"onnx", "int8", "scores", "gate", "release"}
    assert copy.list(f"quarantine/export/{onnx.key}") == [f"{onnx.attempt}-1"]
    again = copy.manifest("export", onnx.key)
    assert again.attempt != onnx.attempt and again.digest == onnx.digest
    assert copy.fetch(again).is_dir()
    assert "quarantined" in result.stderr


def test_a_refusing_gate_stops_the_promotion(finished: Finished, start: Start, copy: Store) -> None:
    before = refs.get(copy, "tiny/production")
    result = start(finished.file, copy.url, "stages.gate.require.0.min=1.01").end().must(4)
    assert result.json["status"] == "refused"
    assert (result.actions["gate"], result.actions["release"]) == ("refused", "skipped")
    verdict = next(stage["artifact"] for stage in result.json["stages"] if stage["name"] == "gate")
    folder = copy.fetch(copy.manifest("gate", verdict["key"]))
    shown = json.loads((folder / "verdict.json").read_text())
    assert shown["passed"] is False
    asked = [one["sentence"] for one in shown["requirements"] if not one["passed"]]
    assert asked and all(f"forgeline: gate gate refused: {sentence}\n" in result.stderr for sentence in asked)
    assert refs.get(copy, "tiny/production") == before


def test_a_failing_stage_lets_the_other_branch_finish(finished: Finished, start: Start, copy: Store) -> None:
    overrides = ["stages.functions.label.keep=[orchard]", "stages.base.max_steps=8"]
    result = start(finished.file, copy.url, *overrides).end().must(3)
    assert result.json["status"] == "failed"
    ended = {"corpus": "reuse", "tokenizer": "reuse", "tokens": "reuse", "base": "run", "functions": "failed"}
    assert result.actions == {name: ended.get(name, "skipped") for name in result.actions}
    assert "at least two classes" in result.stderr


SEARCH = """\
  small:
    search:
      model: teacher
      steps:
        - choose:
            half: {distill: {data: functions, layers: 1, max_steps: 2, learning_rate: 1e-2}}
            lean: {prune: {data: functions, keep: 0.5, samples: 16}}
        - export: {}
        - choose: {fp32: null, int8: {quantize: {}}}
      screen: {data: functions.validation, require: [{metric: parameters, max_ratio: 0.8}]}
  found:
    evaluate: {models: [teacher, small], data: functions.test, latency: {repeats: 3, max_seconds: 0.05}, resamples: 100}
  smallest:
    frontier: {scores: found, against: teacher, require: [{metric: accuracy, min: 0.0}]}
  found_release:
    promote: {gate: smallest, ref: tiny/smallest}
"""


def test_a_search_goes_on_without_what_its_screen_dropped(
    finished: Finished, start: Start, copy: Store, tmp_path: Path
) -> None:
    """Of the teacher's parameters half its layers are fewer than 80 %, half its FFN neurons more."""
    text = finished.file.read_text().replace("execution:\n", f"{SEARCH}execution:\n")
    file = finished.file.with_name("searched.yaml")
    file.write_text(text.replace("name: tiny\n", "name: searched\n"))
    result = start(file, copy.url).end().must(0)
    dropped = {name for name, action in result.actions.items() if action == "skipped"}
    assert dropped == {"small-lean-export", "small-lean-int8"}
    assert result.actions["small-lean-passes"] == "refused" and result.json["status"] == "ok"
    found = next(stage["artifact"] for stage in result.json["stages"] if stage["name"] == "found")
    folder = copy.fetch(copy.manifest("evaluate", found["key"]))
    assert set(json.loads((folder / "scores.json").read_text())["models"]) == {
        "teacher", "small-half-export", "small-half-int8",
    }  # fmt: skip
    assert refs.get(copy, "tiny/smallest").artifact.kind == "quantize"
    again = start(file, copy.url).end().must(0)
    assert set(again.actions.values()) == {"reuse", "refused", "skipped"} and again.seconds < 5, "nothing to start for"
    strict = start(file, copy.url, "stages.small.screen.require.0.max_ratio=0.01").end().must(4)
    assert strict.json["status"] == "refused" and strict.actions["found_release"] == "skipped"


TRIED = """\
  formats:
    search:
      model: onnx
      steps:
        - quantize: {per_channel: {choose: [true, false]}, keep_float: {choose: {all: [], most: ["score*"]}}}
      trials: {data: functions.validation, number: 2, at_once: 1}
  tried:
    evaluate: {models: [onnx, formats], data: functions.test, latency: {repeats: 3, max_seconds: 0.05}, resamples: 100}
"""


@pytest.mark.soak
def test_trials_run_in_rounds_and_are_replayed_from_the_store(finished: Finished, start: Start, copy: Store) -> None:
    file = finished.file.with_name("tried.yaml")
    file.write_text(finished.file.read_text().replace("execution:\n", f"{TRIED}execution:\n"))
    result = start(file, copy.url).end().must(0)
    assert [line.split("formats: ")[1] for line in result.stderr.splitlines() if line.startswith("search ")] == [
        "trials 1 to 1 of 2", "trials 2 to 2 of 2",
    ]  # fmt: skip
    trials = [name for name in result.actions if name.endswith("-trial")]
    assert (
        len(trials) == 2 and {result.actions[name] for name in trials} == {"reuse"} and result.actions["tried"] == "run"
    )
    again = start(file, copy.url).end().must(0)
    assert set(again.actions.values()) == {"reuse"} and again.actions.keys() == result.actions.keys()
