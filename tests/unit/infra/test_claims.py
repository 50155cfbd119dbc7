"""Who holds a key: living and dead holders, slow ones, other machines, failing storage."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infra import claims
from infra.claims import Claim, Watch
from infra.errors import LeaseLost, Preempted, UsageError
from infra.open_store import open_store
from infra.process_id import this_process
from infra.store import Store

HOLDER = """
import sys, time
from infra import claims
from infra.errors import LeaseLost
from infra.open_store import open_store
claim = claims.try_acquire(open_store(sys.argv[1]), "k", "1", float(sys.argv[2]))
print(claim.token, flush=True)
sys.stdin.readline()
try:
    claim.check()
    print("still ours", flush=True)
except LeaseLost:
    print("lost", flush=True)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def holder(store: Store, lease: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, store.url, str(lease)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "1\n"
    return process


def seconds_until(happens: Callable[[], object], limit: float = 5.0) -> float:
    started = time.monotonic()
    while not happens():
        assert time.monotonic() - started < limit
        time.sleep(0.02)
    return time.monotonic() - started


def test_a_living_holder_keeps_its_claim_for_many_leases(store: Store) -> None:
    with claims.try_acquire(store, "k", "1", 0.5) as claim:
        watch = Watch(store, "k", "1")
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            assert watch.try_acquire() is None
            time.sleep(0.02)
        claim.check()
        claim.check_alive()
    assert watch.try_acquire().token == 2


def test_a_holder_that_stands_still_is_replaced_and_learns_of_it(store: Store) -> None:
    process = holder(store, 0.5)
    try:
        process.send_signal(signal.SIGSTOP)
        watch, got = Watch(store, "k", "1", 0.5), []
        took = seconds_until(lambda: got.append(watch.try_acquire()) or got[-1])
        assert took < 3 * 0.5, "within three leases"
        assert got[-1].token == 2
        process.send_signal(signal.SIGCONT)
        assert process.communicate("\n")[0] == "lost\n"
        assert claims.try_acquire(store, "k", "1") is None, "the old holder's late beats do not disturb the new one"
        got[-1].release()
    finally:
        process.kill()
        process.wait()


def test_a_killed_holder_counts_as_dead_before_it_is_reaped(store: Store) -> None:
    process = holder(store, 60.0)
    process.send_signal(signal.SIGKILL)
    watch, got = Watch(store, "k", "1"), []
    seconds_until(lambda: got.append(watch.try_acquire()) or got[-1], limit=2)
    got[-1].release()
    process.communicate()


def foreign_claim(store: Store, **changes: object) -> None:
    """A claim whose record is this living process's, but for `changes`; nobody beats for it."""
    record = {"owner": "x", "lease": 0.3, **this_process(), **changes}
    assert store.create("claims/k/1/000001.json", json.dumps(record).encode())


def test_a_reused_process_id_is_not_the_holder(store: Store) -> None:
    foreign_claim(store, started="1")
    claims.try_acquire(store, "k", "1").release()


@pytest.mark.parametrize("machine", ["another boot/pid:[1]", None])
def test_a_process_of_another_machine_is_given_its_lease(store: Store, machine: str | None) -> None:
    foreign_claim(store, machine=machine, pid=2**22 + 1, started="1")
    watch = Watch(store, "k", "1")
    assert watch.try_acquire() is None
    assert seconds_until(watch.try_acquire) > 0.25


def test_a_new_observer_waits_a_whole_lease_of_its_own(store: Store) -> None:
    foreign_claim(store, machine=None)
    time.sleep(0.4)
    assert Watch(store, "k", "1").try_acquire() is None, "it cannot know how old the last beat is"


def test_the_heartbeat_survives_a_store_that_fails_for_a_while(store: Store, tmp_path: Path) -> None:
    claim = claims.try_acquire(store, "k", "1", 0.15)
    folder = tmp_path / "store/claims"
    folder.rename(tmp_path / "aside")
    folder.write_text("in the way")
    time.sleep(0.2)
    folder.unlink()
    (tmp_path / "aside").rename(folder)
    before = store.find_json("claims/k/1/000001.beat.json")
    seconds_until(lambda: store.find_json("claims/k/1/000001.beat.json") != before)
    claim.check_alive()
    claim.release()


def test_the_heartbeat_notices_that_the_claim_was_taken(store: Store) -> None:
    claim = claims.try_acquire(store, "k", "1", 0.15)
    store.create("claims/k/1/000002.json", b"{}")

    def lost() -> bool:
        try:
            claim.check_alive()
        except LeaseLost:
            return True
        return False

    seconds_until(lost)
    claim.release()
    claim.release()


def test_waiting_ends_with_the_artifact_or_the_claim(store: Store, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x").write_text("x")
    first = claims.wait_for(store, "k", "1", poll=0.05)
    assert isinstance(first, Claim)
    answers: list[object] = []
    waiter = threading.Thread(target=lambda: answers.append(claims.wait_for(store, "k", "1", poll=0.05)))
    waiter.start()
    made = store.commit(
        kind="k", type="t", key="1", attempt="a", payload_dir=tmp_path / "out", identity={}, fence=first.check
    )
    first.release()
    waiter.join(5)
    assert answers == [made]
    cancelled = threading.Event()
    held = claims.try_acquire(store, "k", "2")
    cancelled.set()
    with pytest.raises(Preempted):
        claims.wait_for(store, "k", "2", cancelled=cancelled)
    held.release()


@pytest.mark.parametrize(
    "damage", [b"", b"null", b"\xff", b'{"owner": "x", "lease": 1e99}', b'{"lease": NaN}', b"[" * 9999]
)
@pytest.mark.parametrize("of", ["000001.json", "000001.beat.json"])
def test_a_damaged_claim_is_waited_for_a_lease_and_taken_over(store: Store, damage: bytes, of: str) -> None:
    foreign_claim(store, machine="another")
    store.write_bytes(f"claims/k/1/{of}", damage)
    now = store.now()
    assert claims.held(store, now) == {("k", "1")} and claims.held(store, now + 31) == set()
    watch = Watch(store, "k", "1", lease=0.2)
    assert watch.try_acquire() is None
    seconds_until(lambda: watch.try_acquire())
    assert claims.open_claims(store, store.now())[0].key == "1"


def test_a_heartbeat_that_is_damaged_once_costs_a_living_holder_nothing(store: Store) -> None:
    with claims.try_acquire(store, "k", "1", 0.3) as claim:
        watch = Watch(store, "k", "1", lease=0.3)
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            store.write_bytes("claims/k/1/000001.beat.json", b"{")
            assert watch.try_acquire() is None
            claim.beat()
            assert watch.try_acquire() is None


@pytest.mark.parametrize("text", ["ten", "0", "-1", "nan", "inf", "1e9"])
def test_a_lease_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("FORGELINE_LEASE", text)
    with pytest.raises(UsageError, match="is no lease"):
        claims.default_lease()
