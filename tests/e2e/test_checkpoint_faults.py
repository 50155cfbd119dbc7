"""Checkpoints that are stored while S3 or a disk misbehaves: nothing torn, the training never waits, errors say why."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.errors import StoreError, TransientError
from infra.open_store import open_store

pytestmark = pytest.mark.e2e
LONGEST_POLL = 0.05
OUTAGE = float(os.environ.get("FORGELINE_OUTAGE", "10"))
"""Seconds; `make soak` takes a whole minute."""


@pytest.fixture
def s3(seaweed: Any, load: Any) -> Iterator[Any]:
    server = load("e2e/faulty_s3.py").FaultyS3(seaweed.port)
    yield server
    server.stop()


@pytest.fixture
def training(seaweed: Any, s3: Any, load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Step 1 is stored. The process that stores goes through `s3`, the test reads past it."""
    for name, value in seaweed.env.items():
        monkeypatch.setenv(name, value)
    made = load("e2e/saving.py").Training(open_store(seaweed.url("faults")), tmp_path, monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3.port}")
    made.stored(1)
    yield made
    made.process.close()


@pytest.fixture
def fault(load: Any) -> Callable[[int, str], Any]:
    made: Callable[[int, str], Any] = load("e2e/faulty_s3.py").ServerFault
    return made


# --- a server that fails ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "code", "done"), [(500, "InternalError", True), (503, "SlowDown", False)])
def test_a_server_that_fails_now_and_then(
    training: Any, s3: Any, fault: Any, status: int, code: str, done: bool
) -> None:
    """Two of three requests fail, nine times in all; `done`: the server did what was asked before it failed."""
    failed = []

    def fail(request: Any) -> Any:
        if len(failed) == 9 or len(s3.requests) % 3 == 0:
            return None
        if done:
            s3.forward(request)
        failed.append(request.method)
        return fault(status, code)

    s3.intercept = fail
    training.stored(2)
    assert len(failed) == 9 and "PUT" in failed
    assert training.whole() == 2 and training.checkpoints.steps() == [1, 2]


def test_a_commit_that_lands_after_it_was_given_up_is_not_undone(training: Any, s3: Any, fault: Any) -> None:
    """The server queues the manifest, says it is busy, and writes it when the retry has begun."""
    queued = []

    def token(request: Any) -> str:
        return next(value for name, value in request.headers.items() if name.lower() == "x-amz-meta-forgeline-writer")

    def queue(request: Any) -> Any:
        if request.method != "PUT" or not request.path.endswith("manifest.json"):
            return None
        if not queued:
            queued.append(request)
        if token(request) == token(queued[0]):
            return fault(503, "SlowDown")
        s3.forward(queued[0])
        return None

    s3.intercept = queue
    training.stored(2)
    assert queued and training.whole() == 2


def test_an_outage_is_waited_for_beside_the_training(training: Any, s3: Any) -> None:
    s3.stop()
    training.save(2)
    ended = time.monotonic() + OUTAGE
    while time.monotonic() < ended:
        assert training.poll() is None
        time.sleep(0.05)
    assert training.whole() == 1
    s3.start()
    assert training.outcome().error is None
    assert training.whole() == 2 and training.longest_poll < LONGEST_POLL


def test_a_slow_server_does_not_slow_the_training(training: Any, s3: Any) -> None:
    s3.intercept = lambda request: time.sleep(0.4)
    began = time.perf_counter()
    training.save(2)
    assert time.perf_counter() - began < LONGEST_POLL
    outcome = training.outcome()
    assert outcome.error is None and outcome.seconds > 1.0, "the server was slow"
    assert training.longest_poll < LONGEST_POLL and training.whole() == 2


def test_a_server_that_never_answers_costs_the_save_and_no_more(training: Any, s3: Any) -> None:
    """It takes a request and says nothing: the save fails after `patience`, the next one is stored."""
    released = threading.Event()

    def hang(request: Any) -> None:
        released.wait(60.0)

    s3.intercept = hang
    training.process.patience = 2.0
    training.save(2)
    outcome = training.outcome()
    assert isinstance(outcome.error, TransientError) and "did not get on for 2 s" in outcome.error.what
    s3.intercept = lambda request: None
    released.set()
    training.process.patience = 600.0
    training.stored(3)
    assert training.longest_poll < 5.0 and 3 in training.checkpoints.steps() and training.whole() == 3


# --- credentials ------------------------------------------------------------------------------------------------------


def test_refused_credentials_are_named_at_once_and_read_again(
    training: Any, s3: Any, seaweed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie in a file, as where something beside the training renews them."""
    secret = tmp_path / "credentials"

    def write(value: str) -> None:
        secret.write_text(
            f"[default]\naws_access_key_id={seaweed.env['AWS_ACCESS_KEY_ID']}\naws_secret_access_key={value}\n"
        )

    training.process.close()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(secret))
    write("wrong")
    before = len(s3.requests)
    training.save(2)
    outcome = training.outcome()
    assert isinstance(outcome.error, StoreError) and not outcome.error.transient
    assert "credentials" in outcome.error.what and "wrong" not in str(outcome.error)
    assert outcome.seconds < 10 and len(s3.requests) - before <= 4
    write(seaweed.env["AWS_SECRET_ACCESS_KEY"])
    training.stored(3)
    assert training.whole() == 3 and training.checkpoints.steps() == [1, 3]


def test_credentials_that_expire_amid_an_upload(training: Any, s3: Any, fault: Any) -> None:
    """The rest of the save is refused, whatever is asked; a new process is a new session."""
    stores = child().pid
    s3.intercept = lambda request: fault(400, "ExpiredToken") if "/files/" in request.path else None
    before = len(s3.requests)
    training.save(2)
    outcome = training.outcome()
    assert isinstance(outcome.error, StoreError) and not outcome.error.transient
    assert "credentials (ExpiredToken)" in outcome.error.what
    assert outcome.seconds < 10 and len(s3.requests) - before <= 16
    assert training.whole() == 1
    s3.intercept = lambda request: None
    training.stored(3)
    assert training.whole() == 3 and child().pid != stores


# --- disk and process -------------------------------------------------------------------------------------------------


def test_a_full_disk_is_named_and_the_next_save_works(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    training = load("e2e/saving.py").Training(open_store(str(disk / "store")), tmp_path, monkeypatch)
    try:
        training.stored(1)
        (disk / "other").write_bytes(bytes(3 << 20))
        training.save(2, size=600_000)
        outcome = training.outcome()
        assert isinstance(outcome.error, StoreError) and "no space left" in outcome.error.what
        assert "Free space" in str(outcome.error.hint) and not outcome.error.transient
        assert training.whole() == 1
        (disk / "other").unlink()
        training.save(3, size=600_000)
        assert training.outcome().error is None and training.whole() == 3
        assert list((disk / "store").rglob("*a2*")) == [], "what the failed save left is gone"
    finally:
        training.process.close()
        subprocess.run(["umount", str(disk)], check=True)


def child() -> psutil.Process:
    return next(p for p in psutil.Process().children() if "infra.checkpoint_process" in p.cmdline())


@pytest.mark.parametrize("reached", ["/files/shard-0", "state.json", "manifest.json"])
def test_a_killed_process_is_replaced(training: Any, s3: Any, reached: str) -> None:
    """SIGKILL when the server has just taken in part of the upload."""
    victim = child()

    def kill(request: Any) -> None:
        if request.method == "PUT" and request.path.endswith(reached) and victim.is_running():
            s3.forward(request)
            os.kill(victim.pid, 9)

    s3.intercept = kill
    training.save(2)
    outcome = training.outcome()
    assert isinstance(outcome.error, TransientError) and "ended (exit code -9)" in outcome.error.what
    assert training.whole() == (2 if reached == "manifest.json" else 1), "the manifest is the commit"
    training.stored(3)
    assert training.whole() == 3 and child().pid != victim.pid
