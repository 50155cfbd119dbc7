"""A store that is away: waited for within one budget, never doubled by it, and given up once."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra import claims, patience
from infra.errors import StoreError, StoreUnreachable
from infra.open_store import open_store
from infra.patience import Patience
from infra.store_file import FileStore


class Away:
    """A call that fails so many times before it answers."""

    def __init__(self, times: int) -> None:
        self.left, self.asked = times, 0

    def __call__(self) -> str:
        self.asked += 1
        if self.left:
            self.left -= 1
            raise StoreUnreachable("it is away")
        return "here"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds gone by, which only waiting moves."""
    now = [100.0]

    class Waits(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            now[0] += timeout or 0.0
            return self.is_set()

    monkeypatch.setattr(patience, "threading", SimpleNamespace(Event=Waits))
    for module in (patience, claims):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_an_outage_of_seconds_is_outlived_and_asked_about_gently(clock: list[float]) -> None:
    away = Away(20)
    assert Patience(60.0).call(away) == "here"
    assert away.asked == 21 and 15 < clock[0] - 100 < 40


def test_a_store_that_is_gone_is_given_up_once_and_not_by_every_call(clock: list[float]) -> None:
    given = Patience(60.0)
    with pytest.raises(StoreUnreachable):
        given.call(Away(10**6))
    assert clock[0] == pytest.approx(160.0)
    late = Away(10**6)
    with pytest.raises(StoreUnreachable):
        given.call(late)
    assert late.asked == 1 and clock[0] == pytest.approx(160.0), "the budget of this outage is used up"
    clock[0] += 3600.0
    assert given.call(Away(3)) == "here", "another outage has a budget of its own"


def test_others_that_succeed_do_not_make_a_call_endless(clock: list[float]) -> None:
    given = Patience(60.0)

    def fails_while_others_succeed() -> None:
        given.call(lambda: None)
        raise StoreUnreachable("this object only")

    with pytest.raises(StoreUnreachable):
        given.call(fails_while_others_succeed)
    assert clock[0] == pytest.approx(160.0)


def test_what_is_no_outage_is_not_asked_again(clock: list[float]) -> None:
    def refused() -> None:
        raise StoreError("wrong credentials")

    with pytest.raises(StoreError, match="wrong"):
        Patience(60.0).call(refused)
    away = Away(1)
    with pytest.raises(StoreUnreachable):
        Patience(0.0).call(away)
    assert clock[0] == 100.0


def test_giving_up_ends_calls_that_wait_now() -> None:
    given, waiting, found = Patience(600.0), threading.Event(), list[BaseException]()

    def away() -> None:
        waiting.set()
        raise StoreUnreachable("gone")

    def call() -> None:
        try:
            given.call(away)
        except StoreUnreachable as error:
            found.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert waiting.wait(10)
    given.give_up()
    thread.join(10)
    assert not thread.is_alive() and len(found) == 1


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    store = open_store(str(tmp_path / "store"), probe=True)
    assert isinstance(store, FileStore)
    store.write_bytes("a/b", b"bytes")
    return store


OPERATIONS: dict[str, Any] = {
    "read": lambda store: store.read_bytes("a/b"),
    "write": lambda store: store.write_bytes("a/c", b"new"),
    "create": lambda store: store.create("a/d", b"new"),
    "exists": lambda store: store.exists("a/b"),
    "list": lambda store: store.list("a"),
    "walk": lambda store: list(store.walk("a")),
    "entries": lambda store: list(store.entries("a")),
    "modified": lambda store: store.modified("a/b"),
    "delete": lambda store: store.delete("a/b"),
    "delete_tree": lambda store: store.delete_tree("a"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_folder_that_is_gone_is_an_outage_and_not_an_empty_store(store: FileStore, tmp_path: Path, name: str) -> None:
    expected = OPERATIONS[name](store) if name in ("read", "exists", "list", "walk", "entries", "modified") else None
    store.root.rename(tmp_path / "away")
    with pytest.raises(StoreUnreachable, match="the folder of the store is gone"):
        OPERATIONS[name](store)
    assert not store.root.exists(), "nothing is written where the disk was"
    store.patience = Patience(60.0)
    threading.Thread(target=_back_when_asked, args=(store, tmp_path / "away")).start()
    found = OPERATIONS[name](store)
    assert expected is None or found == expected
    if name == "create":
        assert found is True and store.read_bytes("a/d") == b"new"


def _back_when_asked(store: FileStore, away: Path) -> None:
    """The disk comes back once somebody waits for it."""
    while store.patience._began is None:
        time.sleep(0.01)
    away.rename(store.root)


def test_a_job_waits_for_a_store_it_cannot_open_yet(store: FileStore, tmp_path: Path) -> None:
    store.root.rename(tmp_path / "away")
    with pytest.raises(StoreUnreachable, match="is gone"):
        open_store(str(store.root), patience=Patience(0.05))
    given = Patience(60.0)
    store.patience = given
    threading.Thread(target=_back_when_asked, args=(store, tmp_path / "away")).start()
    assert open_store(str(store.root), patience=given).read_bytes("a/b") == b"bytes"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT])
def test_a_create_that_was_done_before_the_disk_failed_is_not_lost_to_itself(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    failing = [OSError(number, "made for a test")] * 2

    def sync(folder: Path) -> None:
        if failing:
            raise failing.pop()

    monkeypatch.setattr("infra.store_file._sync_folder", sync)
    store.patience = Patience(60.0)
    assert store.create("refs/x/000001.json", b"mine") is True
    assert store.create("refs/x/000001.json", b"theirs") is False
    assert store.read_bytes("refs/x/000001.json") == b"mine" and not list(store._temporary.iterdir())


def test_an_outage_makes_no_holder_look_dead(
    store: FileStore, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The silence of a heartbeat counts while it is looked at, not while the store was away for both."""
    monkeypatch.setattr(claims, "is_dead", lambda holder: False)
    store.create("claims/k/1/000001.json", b'{"owner": "another machine", "lease": 10.0}')
    watch = claims.Watch(store, "k", "1")
    assert watch.try_acquire() is None
    clock[0] += 50.0
    assert watch.try_acquire() is None, "nobody looked for 50 s"
    store.write_bytes("claims/k/1/000001.beat.json", b'{"count": 7, "released": false}')
    for _ in range(4):
        clock[0] += 3.0
        assert watch.try_acquire() is None
    clock[0] += 3.0
    claim = watch.try_acquire()
    assert claim is not None and claim.token == 2
    claim.release()
