"""Runs from the terminal: which one is meant, whether it lives, how far it is, its logs, its end, two beside each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import cli
from infra.errors import DamagedObject, UsageError
from infra.ledger import BUCKETS
from infra.open_store import open_store
from infra.process_id import start_time, this_process
from infra.store import Store
from tasks.run.record import SILENT_SECONDS, read_run, state_in, state_of
from tasks.run.record_format import RECORDS

WAITS = "import sys, time; print('up', flush=True); time.sleep(60)"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("FORGELINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FORGELINE_STORE", str(tmp_path / "store"))
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """One that runs until it is told to end."""
    with subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        started.stdout.readline()
        yield started
        started.kill()


def entry(name: str, **fields: Any) -> dict[str, Any]:
    given = {"name": name, "kind": "pretrain", "action": "waiting", "reason": "", "seconds": 0.0, "started_at": 0.0}
    return {**given, "artifact": None, "metrics": {}, "needs": [], "error": None, **fields}


def record(store: Store, run: str, *, pid: int | None = None, **fields: Any) -> dict[str, Any]:
    """A run record, by default of this very process, or of that with `pid`."""
    holder = this_process() if pid is None else {**this_process(), "pid": pid, "started": start_time(pid)}
    given = {
        "run": run,
        "pipeline": "demo",
        "status": "running",
        "seconds": 1.5,
        "process": {**holder, "host": "here"},
        "flow_run": "f-1",
        "stages": [entry("base"), entry("teacher")],
    }
    store.write_json(f"runs/{run}/run.json", {**given, **fields})
    return {**given, **fields}


def job(tmp_path: Path, run: str, stage: str, log: str, *, ended: bool = False, events: str = "") -> Path:
    folder = tmp_path / "home/runs" / run / stage / f"job-{time.monotonic_ns()}"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text("{}")
    (folder / "log.txt").write_text(log)
    (folder / "events.jsonl").write_text(events)
    if ended:
        (folder / "outcome-0.json").write_text("{}")
    time.sleep(0.01)  # the next one is later
    return folder


def test_runs_by_their_place_from_the_end(store: Store) -> None:
    for run in ("20260101-a", "20260102-b", "20260103-c"):
        record(store, run)
    assert [read_run(store, name)["run"][-1] for name in ("latest", "latest~0", "latest~2", "20260102-b")] == list(
        "ccab"
    )
    for name in ("latest~3", "latest~", "latest~-1", "20260102"):
        with pytest.raises(UsageError, match="no run"):
            read_run(store, name)


def test_a_run_whose_process_is_gone_is_dead(store: Store, process: subprocess.Popen[bytes]) -> None:
    living = record(store, "one", pid=process.pid)
    process.kill()
    process.wait()
    assert state_of(living) == "dead"
    assert state_of(record(store, "two")) == "running"
    assert state_of({**living, "status": "ok"}) == "ok"
    assert state_of({**living, "process": {**living["process"], "machine": "another boot"}}) == "running"
    assert state_of({**living, "process": 17}) == "running", "a record of an earlier version"


def test_a_run_elsewhere_that_falls_silent_is_not_said_to_run(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a crash of the machine, or where a run ended while its store was away."""
    elsewhere = {**this_process(), "machine": "another boot", "host": "there"}
    known = record(store, "one", process=elsewhere)
    assert state_in(store, known) == "running"
    long_ago = time.time() - SILENT_SECONDS - 60
    os.utime(tmp_path / "store/runs/one/run.json", (long_ago, long_ago))
    assert state_in(store, known) == "silent" and state_in(store, {**known, "status": "ok"}) == "ok"
    assert cli.main(["status"]) == 0
    said = capsys.readouterr().out
    assert "demo                 silent" in said and "one: silent: no word from there, process" in said
    here = record(store, "two")
    os.utime(tmp_path / "store/runs/two/run.json", (long_ago, long_ago))
    assert state_in(store, here) == "running", "its process is there"


def test_status_says_how_far_a_run_is(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = {"goodput": 0.25, "buckets": dict.fromkeys(BUCKETS, 0.0) | {"startup": 3.0, "useful": 1.0}}
    record(store, "one", status="ok", ledger=ledger, stopped="")
    record(store, "two")
    events = [{"step": step, "total": 100, "seconds": 2.0 * step} for step in (10, 20, 40)]
    job(tmp_path, "two", "base", "", events="".join(json.dumps(event) + "\n" for event in events) + '{"step": 9')
    assert cli.main(["status"]) == 0
    said = capsys.readouterr().out
    assert "goodput  25%" in said and "two: running on here, process" in said
    assert "running       0.0 s  40/100, about 2:00 left" in said
    assert cli.main(["status", "one"]) == 0
    assert "useful 1.0 s, startup 3.0 s\n" in capsys.readouterr().out


def test_logs_are_those_of_every_job_in_their_order(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(store, "one", status="ok")
    job(tmp_path, "one", "base", "first\n", ended=True)
    job(tmp_path, "one", "teacher", "second\nno newline", ended=True)
    job(tmp_path, "one", "base", "third\n", ended=True)
    assert cli.main(["logs", "latest"]) == 0
    assert capsys.readouterr().out == "base | first\nteacher | second\nteacher | no newline\nbase | third\n"
    assert cli.main(["logs", "latest", "base"]) == 0
    assert capsys.readouterr().out == "first\nthird\n"
    assert cli.main(["logs", "latest", "bse"]) == 2
    record(store, "two", status="ok")
    assert cli.main(["logs", "two"]) == 2
    assert "Logs stay where the run ran (here)" in capsys.readouterr().err


def test_logs_are_followed_until_the_run_ends(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(store, "one")
    folder = job(tmp_path, "one", "base", "begun\n")

    def go_on() -> None:
        time.sleep(0.5)
        with (folder / "log.txt").open("a") as log:
            log.write("half a ")
            log.flush()
            time.sleep(0.5)
            log.write("line\n")
        job(tmp_path, "one", "teacher", "another job\n")
        record(store, "one", status="ok")

    thread = threading.Thread(target=go_on)
    thread.start()
    assert cli.main(["logs", "one", "-f"]) == 0
    thread.join()
    assert capsys.readouterr().out == "base | begun\nbase | half a line\nteacher | another job\n"


def test_cancel_ends_the_process_of_the_run(
    store: Store, process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    record(store, "one", pid=process.pid)
    assert cli.main(["cancel", "one"]) == 0
    assert start_time(process.pid) is None
    assert "run one ended: dead, 0 of 2 stages done" in capsys.readouterr().out
    assert cli.main(["cancel", "one"]) == 0
    assert "run one is dead" in capsys.readouterr().out


def test_cancel_spares_another_process_with_the_same_number(
    store: Store, process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    holder = {**this_process(), "pid": process.pid, "started": "1", "host": "here"}
    record(store, "one", process=holder)
    assert cli.main(["cancel", "one"]) == 0
    assert "is dead" in capsys.readouterr().out
    assert process.poll() is None


def test_cancel_sends_nothing_to_another_machine(
    store: Store, process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = {**this_process(), "machine": "other", "pid": process.pid, "started": start_time(process.pid)}
    record(store, "one", process={**elsewhere, "host": "gpu-7"})
    assert cli.main(["cancel", "one"]) == 2
    said = capsys.readouterr().err
    assert "gpu-7" in said and "prefect flow-run cancel f-1" in said
    assert process.poll() is None
    record(store, "two", status="ok")
    assert cli.main(["cancel", "two"]) == 0
    assert "has ended already: ok" in capsys.readouterr().out


def test_two_runs_beside_each_other(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def made(name: str, params: dict[str, Any], metrics: dict[str, float]) -> dict[str, Any]:
        (tmp_path / "payload").mkdir(exist_ok=True)
        (tmp_path / "payload/file").write_text(name)
        identity = {"kind": "pretrain", "version": 1, "params": params}
        folders = {"attempt": "one", "payload_dir": tmp_path / "payload"}
        manifest = store.commit(
            kind="pretrain", type="model", key=name * 16, identity=identity, metrics=metrics, **folders
        )
        return {"action": "run", "artifact": vars(manifest.ref), "metrics": metrics}

    old = made("old1", {"max_steps": 10, "model": {"type": "llama", "size": 8}}, {"loss": 3.0, "steps": 10.0})
    new = made("new1", {"max_steps": 10, "model": {"type": "llama", "size": 16}}, {"loss": 2.5, "f1": 0.5})
    record(store, "one", status="ok", stages=[entry("base", **old, seconds=4.0), entry("kept", **old)])
    stages = [entry("base", **new, seconds=6.0), entry("kept", **{**old, "action": "reuse"}), entry("more", **new)]
    record(store, "two", status="ok", stages=stages)
    assert cli.main(["compare", "latest~1", "latest", "--json"]) == 0
    base, kept, more = json.loads(capsys.readouterr().out)["stages"]
    assert base["params"] == {"model.size": [8, 16]} and base["seconds"] == [4.0, 6.0]
    assert base["metrics"] == {
        "loss": {"values": [3.0, 2.5], "difference": -0.5},
        "steps": {"values": [10.0, None], "difference": None},
        "f1": {"values": [None, 0.5], "difference": None},
    }
    assert kept["same_artifact"] and kept["params"] == {} and kept["actions"] == ["run", "reuse"]
    assert more["actions"] == [None, "run"] and more["params"] == {}
    assert cli.main(["compare", "one", "two"]) == 0
    said = capsys.readouterr().out
    assert "  model.size: 8 -> 16\n  loss: 3 -> 2.5  (-0.5)\n" in said and "max_steps" not in said


DAMAGE = {
    "empty": b"",
    "null": b"null",
    "not UTF-8": b"\xff{}",
    "NaN": b'{"run": "two", "seconds": NaN}',
    "deep": b"[" * 100_000,
    "a stage is text": b'{"run": "two", "pipeline": "p", "status": "ok", "seconds": 1, "stages": ["x"]}',
    "of another run": b'{"run": "one", "pipeline": "p", "status": "ok", "seconds": 1, "stages": []}',
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_one_bad_record_is_left_out_and_named(
    store: Store, damage: bytes, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    record(store, "one", status="ok")
    record(store, "two", status="ok")
    store.write_bytes("runs/two/run.json", damage)
    assert cli.main(["status"]) == 0
    out = capsys.readouterr().out
    assert "two  its record is damaged" in out and "\none: ok" in out
    assert "run two is left out: the record of a run is damaged" in caplog.text
    assert cli.main(["status", "two"]) == 3
    assert "Artifacts are not concerned" in capsys.readouterr().err
    for command in (["report", "latest"], ["compare", "latest", "one"]):
        assert cli.main(command) == 0, "the newest is the newest that can be read"


def test_a_flipped_bit_of_a_record_is_no_other_fact(store: Store) -> None:
    record(store, "one", status="ok", stages=[entry("base", metrics={"accuracy": 1.0})])
    store.write_bytes("runs/one/run.json", RECORDS.encode(store.read_json("runs/one/run.json")))
    whole = store.read_bytes("runs/one/run.json")
    assert read_run(store, "one")["stages"][0]["metrics"] == {"accuracy": 1.0}
    store.write_bytes("runs/one/run.json", whole.replace(b'"accuracy": 1.0', b'"accuracy": 0.0'))
    with pytest.raises(DamagedObject, match="checksum differs"):
        read_run(store, "one")


def test_damaged_events_of_a_job_are_skipped(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(store, "one")
    events = 'null\n{"seconds": "x"}\n{"step": 1, "total": 4, "seconds": 1.0}\n[NaN\n{"step": 2, "total": 4, "seconds": 2.0}\n'
    job(tmp_path, "one", "base", "", events=events)
    assert cli.main(["status"]) == 0
    assert "2/4, about" in capsys.readouterr().out
