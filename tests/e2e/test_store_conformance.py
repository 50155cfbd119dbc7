"""A folder and a bucket keep the same promises: every test here runs against both, the bucket on a real SeaweedFS."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra import claims, refs
from infra.artifacts import ArtifactRef, Manifest
from infra.census import Keep
from infra.checkpoints import CheckpointStore
from infra.checksum import sealed
from infra.collector import collect, restore
from infra.errors import CorruptArtifact, LeaseLost, StageError, StoreError
from infra.open_store import open_store
from infra.store import Store
from infra.store_s3 import S3Store
from infra.verification import set_aside, verify_store

pytestmark = pytest.mark.e2e
REF = ArtifactRef("pretrain", "k1", "d1", "model")


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(S3Store, "glances", (0.1,))
    monkeypatch.setattr(S3Store, "doubts", (0.1, 0.1))
    if request.param == "file":
        yield open_store(str(tmp_path / "store"), probe=True)
        return
    server: Any = request.getfixturevalue("seaweed")
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    yield open_store(server.url("conformance"), probe=True)


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Results of `work(0..count-1)`, started by all threads at the same instant."""
    barrier = threading.Barrier(count)

    def start(number: int) -> Any:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(start, range(count)))


def payload(folder: Path, **files: str) -> Path:
    for name, text in (files or {"weights": "w" * 1000, "sub__config": "{}"}).items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def model(folder: Path, text: str) -> dict[str, Path]:
    return {"engine/model": payload(folder, engine__model=text) / "engine/model"}


def commit(store: Store, folder: Path, attempt: str = "a1", key: str = "k1", **kwargs: Any) -> Manifest:
    return store.commit(
        kind="pretrain", type="model", key=key, attempt=attempt, payload_dir=folder, identity={"lr": 1}, **kwargs
    )


def damage(store: Store, path: str) -> None:
    data = bytearray(store.read_bytes(path))
    data[len(data) // 2] ^= 1
    store.delete(path)
    store.write_bytes(path, bytes(data))


# --- objects ----------------------------------------------------------------------------------------------------------


def test_objects_are_created_read_listed_and_deleted(store: Store) -> None:
    assert not store.exists("a/b/one.json") and store.list("a") == [] and list(store.walk("a")) == []
    with pytest.raises(FileNotFoundError):
        store.read_bytes("a/b/one.json")
    store.write_json("a/b/one.json", {"n": 1})
    store.write_json("a/b/one.json", {"n": 2})
    store.write_bytes("a/two with space", b"\x00")
    assert store.read_json("a/b/one.json") == {"n": 2} and store.find_json("a/none") is None
    assert store.list("a") == ["b", "two with space"]
    store.copy("a/two with space", "a/b/copy")
    assert store.read_bytes("a/b/copy") == b"\x00"
    store.delete("a/b/copy")
    with pytest.raises(FileNotFoundError):
        store.copy("a/none", "a/b/copy")
    assert list(store.walk("a")) == ["a/b/one.json", "a/two with space"]
    assert not store.exists("a/b"), "a folder is not an object"
    store.delete("a/two with space")
    store.delete("a/two with space")
    store.delete_tree("a")
    assert list(store.walk("a")) == [] and not store.exists("a/b/one.json")


def test_sizes_and_times_are_the_stores_own(store: Store) -> None:
    before = store.now()
    store.write_bytes("a/one", b"12345")
    (entry,) = store.entries("a")
    assert (entry.path, entry.size, entry.modified) == ("a/one", 5, store.modified("a/one"))
    assert before <= entry.modified <= store.now() <= before + 60
    assert list(store.walk(".probe")) == [] and store.unfinished(remove=False) == []
    with pytest.raises(FileNotFoundError):
        store.modified("a/none")


def test_create_has_one_winner_even_for_equal_bytes(store: Store) -> None:
    for round_ in range(5 if store.url.startswith("file") else 2):
        assert sorted(at_once(8, lambda _, path=f"race/{round_}": store.create(path, b"same"))) == [False] * 7 + [True]


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "a//b", "a/./b", "", "a\\..\\b", "a\0b", "c:/x", "a/"])
def test_paths_cannot_leave_the_store(store: Store, path: str) -> None:
    for use in (store.read_bytes, store.exists, store.delete, lambda p: store.create(p, b""), store.delete_tree):
        with pytest.raises(StoreError, match=r"unsafe|normal form"):
            use(path)


# --- artifacts --------------------------------------------------------------------------------------------------------


def test_commit_then_fetch_gives_back_the_files(store: Store, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    records = payload(tmp_path / "records", curve="loss")
    made = commit(
        store,
        payload(tmp_path / "out"),
        records_dir=records,
        metrics={"loss": 1.5},
        on_progress=lambda *p: seen.append(p),
    )
    found = store.manifest("pretrain", "k1")
    assert found == made and found.metrics == {"loss": 1.5} and store.manifest("pretrain", "other") is None
    assert [e.path for e in made.payload] == ["sub/config", "weights"] and made.size == 1002
    fetched = store.fetch(found)
    assert (fetched / "weights").read_text() == "w" * 1000 and (fetched / "sub/config").read_text() == "{}"
    assert (store.fetch_records(found) / "curve").read_text() == "loss"
    assert seen[-1] == (1006, 1006) and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_content_digest_does_not_depend_on_attempt_or_records(store: Store, tmp_path: Path) -> None:
    out = payload(tmp_path / "out")
    first = commit(store, out, "a1", key="k1", records_dir=payload(tmp_path / "r1", t="1"))
    second = commit(store, out, "a2", key="k2", records_dir=payload(tmp_path / "r2", t="2"))
    assert first.digest == second.digest


def test_racing_attempts_end_with_one_artifact(store: Store, tmp_path: Path) -> None:
    folders = [payload(tmp_path / f"out{i}", weights=f"from {i}") for i in range(4)]
    manifests = at_once(4, lambda i: commit(store, folders[i], f"attempt{i}"))
    assert all(m == manifests[0] for m in manifests), "every loser adopts the winner's artifact"
    left = {path.split("/")[3] for path in store.walk("artifacts/pretrain/k1")}
    assert left == {manifests[0].attempt, "manifest.json"}, "losers clean up"
    winner = manifests[0].attempt[-1]
    assert (store.fetch(manifests[0]) / "weights").read_text() == f"from {winner}"


def test_a_lost_fence_commits_nothing(store: Store, tmp_path: Path) -> None:
    def fence() -> None:
        raise LeaseLost("taken over")

    with pytest.raises(LeaseLost):
        commit(store, payload(tmp_path / "out"), fence=fence)
    assert store.manifest("pretrain", "k1") is None


@pytest.mark.parametrize("part", ["weights", "sub/config"])
def test_a_flipped_bit_is_refused_and_the_artifact_can_be_made_again(
    store: Store, tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = commit(store, payload(tmp_path / "out"))
    damage(store, f"artifacts/pretrain/k1/a1/payload/{part}")
    with pytest.raises(CorruptArtifact, match=part) as caught:
        store.fetch(made)
    assert (caught.value.kind, caught.value.key, caught.value.attempt) == ("pretrain", "k1", "a1")
    moved = store.quarantine("pretrain", "k1", made.attempt)
    assert moved == "quarantine/pretrain/k1/a1-1/manifest.json" and store.exists(moved)
    assert store.manifest("pretrain", "k1") is None and store.quarantine("pretrain", "k1") is None
    again = commit(store, payload(tmp_path / "out"), "a2")
    assert again.attempt == "a2" and (store.fetch(again) / "weights").exists()
    assert store.quarantine("pretrain", "k1", attempt="a1") is None, "another attempt's artifact is left alone"


def test_verification_reads_what_the_store_holds_and_not_the_cache(store: Store, tmp_path: Path) -> None:
    rows = store.share(payload(tmp_path / "rows", rows="r" * 5000) / "rows", "rows")
    made = commit(store, payload(tmp_path / "out"), shared=[rows], producer={"stage": "base"})
    assert store.fetch(made).is_dir() and verify_store(store).damaged == []
    damage(store, "artifacts/pretrain/k1/a1/payload/weights")
    damage(store, rows.shared_path)
    (found,) = verify_store(store).damaged
    assert "payload/weights: sha256 differs" in found.what and "payload/rows: " in found.what
    assert set_aside(store, found) == "quarantine/pretrain/k1/a1-1/manifest.json"
    assert verify_store(store).damaged == [] and not store.exists(rows.shared_path)


def test_missing_and_truncated_files_are_refused(store: Store, tmp_path: Path) -> None:
    made = commit(store, payload(tmp_path / "out"))
    store.delete("artifacts/pretrain/k1/a1/payload/sub/config")
    with pytest.raises(CorruptArtifact, match="sub/config: missing"):
        store.fetch(made)
    store.write_bytes("artifacts/pretrain/k1/a1/payload/sub/config", b"{")
    with pytest.raises(CorruptArtifact, match="sub/config"):
        store.fetch(made)


@pytest.mark.parametrize(
    "garble",
    [lambda d: b"{", lambda d: b"[]", lambda d: d.replace(b'"weights"', b'"weightz"'), lambda d: b'{"format": 1}'],
)
def test_a_damaged_manifest_is_corruption_not_a_crash(
    store: Store, tmp_path: Path, garble: Callable[[bytes], bytes]
) -> None:
    commit(store, payload(tmp_path / "out"))
    path = "artifacts/pretrain/k1/manifest.json"
    store.write_bytes(path, garble(store.read_bytes(path)))
    with pytest.raises(StoreError) as caught:
        store.manifest("pretrain", "k1")
    assert isinstance(caught.value, CorruptArtifact)
    assert store.quarantine("pretrain", "k1") is not None
    assert commit(store, payload(tmp_path / "out"), "a2").attempt == "a2"


def test_a_manifest_cannot_reach_outside_its_folder(store: Store, tmp_path: Path) -> None:
    made = commit(store, payload(tmp_path / "out"))
    path = "artifacts/pretrain/k1/manifest.json"
    for field, evil in (("path", "../../../../x"), ("path", "/etc/passwd")):
        data = made.to_json()
        data["payload"][0][field] = evil
        store.write_json(path, sealed(data))
        with pytest.raises(StoreError, match="unsafe"):
            store.manifest("pretrain", "k1")
    with pytest.raises(StoreError, match="unsafe"):
        store.fetch(replace(made, attempt="../../other"))


def test_links_and_empty_results_are_refused(store: Store, tmp_path: Path) -> None:
    out = payload(tmp_path / "out")
    (out / "link").symlink_to("/etc/hostname")
    with pytest.raises(StoreError, match="link"):
        commit(store, out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StageError, match="no file"):
        commit(store, tmp_path / "empty")
    with pytest.raises(StageError, match="loss"):
        commit(store, payload(tmp_path / "fine"), metrics={"loss": float("nan")})
    assert store.manifest("pretrain", "k1") is None


def test_shared_files_are_stored_once_and_fetched_with_every_artifact_that_has_them(
    store: Store, tmp_path: Path
) -> None:
    """And a damaged one is stored again, though its place is taken."""
    folder = payload(tmp_path / "common", rows="r" * 5000)
    entry = store.share(folder / "rows", "train/rows")
    assert store.share(folder / "rows", "other/name").shared_path == entry.shared_path
    assert list(store.walk("files")) == [entry.shared_path]
    made = []
    for key in ("k1", "k2"):
        own = payload(tmp_path / key, about=key)
        made.append(commit(store, own, key=key, shared=[replace(entry, path=f"{key}/rows")]))
        found = store.manifest("pretrain", key)
        assert found == made[-1] and [e.shared for e in found.payload] == [False, True]
        fetched = store.fetch(found)
        assert (fetched / "about").read_text() == key and (fetched / key / "rows").read_text() == "r" * 5000
        assert (store.fetch(found, only=["about"]) / "about").read_text() == key
    assert list(store.walk("files")) == [entry.shared_path]
    damage(store, entry.shared_path)
    with pytest.raises(CorruptArtifact, match="k1/rows: sha256 differs"):
        _fetch_again(store, made[0], tmp_path)
    store.quarantine("pretrain", "k1")
    assert not store.exists(entry.shared_path)
    store.share(folder / "rows", "train/rows")
    assert (_fetch_again(store, made[1], tmp_path) / "k2/rows").read_text() == "r" * 5000


def _fetch_again(store: Store, manifest: Manifest, tmp_path: Path) -> Path:
    """As a machine that never fetched it."""
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    return store.fetch(manifest)


def test_a_large_file_in_parts_arrives_whole(store: Store, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    data = os.urandom(21 << 20)
    (tmp_path / "out/big").write_bytes(data)
    seen: list[int] = []
    made = commit(store, tmp_path / "out", on_progress=lambda done, total: seen.append(done))
    assert (store.fetch(made) / "big").read_bytes() == data
    assert len(seen) >= 3 and seen[-1] == len(data)


# --- refs -------------------------------------------------------------------------------------------------------------


def test_what_nothing_needs_goes_in_two_rounds_and_comes_back_in_between(store: Store, tmp_path: Path) -> None:
    kept = commit(store, payload(tmp_path / "kept"), key="kept")
    commit(store, payload(tmp_path / "lost"), key="lost")
    refs.advance(store, "garbage/latest", kept.ref)
    keep = Keep(grace=0, runs=0, history=1)
    time.sleep(1.1)  # S3 tells times by the second
    collect(store, keep)
    assert store.manifest("pretrain", "lost") is None
    assert store.fetch(restore(store, "pretrain", "lost")).is_dir()
    for _ in range(2):
        time.sleep(1.1)
        collect(store, keep)
    assert store.fetch(kept).is_dir() and list(store.walk("trash")) == []
    assert list(store.walk("artifacts/pretrain/lost")) == []


def test_refs_move_by_compare_and_set_and_remember(store: Store) -> None:
    name = "code/base/latest"
    assert refs.get(store, name) is None and refs.history(store, name) == []
    first = refs.set(store, name, REF, expected=0, note="first")
    assert refs.set(store, name, REF, expected=1) == first, "the same target adds nothing"
    second = refs.set(store, name, replace(REF, key="k2"), expected=1, by="run-7")
    with pytest.raises(refs.RefConflict, match="k2"):
        refs.set(store, name, replace(REF, key="k3"), expected=1)
    assert refs.history(store, name) == [second, first]
    refs.advance(store, "code/production", REF)
    assert refs.names(store) == ["code/base/latest", "code/production"] and refs.names(store, "code/p") == [
        "code/production"
    ]


def test_of_racing_moves_one_wins_and_forced_ones_all_land(store: Store) -> None:
    def attempt(number: int) -> bool:
        try:
            refs.set(store, "r", replace(REF, key=f"k{number}"), expected=0)
        except refs.RefConflict:
            return False
        return True

    assert sum(at_once(8, attempt)) == 1
    at_once(4, lambda number: refs.advance(store, "r", replace(REF, key=f"later{number}")))
    assert [entry.number for entry in refs.history(store, "r")] == [5, 4, 3, 2, 1]


# --- claims -----------------------------------------------------------------------------------------------------------


def test_one_of_many_gets_the_claim_and_a_released_one_passes_on(store: Store) -> None:
    got = [claim for claim in at_once(8, lambda _: claims.try_acquire(store, "k", "1", 5.0)) if claim]
    assert len(got) == 1
    assert claims.try_acquire(store, "k", "1") is None
    got[0].release()
    next_ = [claim for claim in at_once(8, lambda _: claims.try_acquire(store, "k", "1", 5.0)) if claim]
    assert len(next_) == 1 and next_[0].token == got[0].token + 1
    carried = claims.Claim.from_json(store, got[0].to_json())
    with pytest.raises(LeaseLost):
        carried.check()
    claims.Claim.from_json(store, next_[0].to_json()).check()
    next_[0].release()


def test_a_killed_holder_on_this_machine_is_replaced_at_once(store: Store) -> None:
    code = (
        "import sys, time; from infra import claims; from infra.open_store import open_store\n"
        "claim = claims.try_acquire(open_store(sys.argv[1]), 'k', '1', 60.0)\n"
        "print(claim.token, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, store.url], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "1\n"
        assert claims.try_acquire(store, "k", "1") is None, "it lives"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    claim = claims.try_acquire(store, "k", "1")
    assert claim is not None and claim.token == 2
    claim.release()


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_the_newest_checkpoint_that_verifies_is_used(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    points = CheckpointStore(store, "pretrain", "k1")
    assert points.latest() is None and points.steps() == []
    for step in (5, 20, 100):
        points.commit(step, model(tmp_path / f"s{step}", f"weights at {step}"), {"step": step})
    assert points.steps() == [5, 20, 100]
    newest = points.latest()
    assert newest.step == 100 and newest.state == {"step": 100}
    assert (newest.path / "engine/model").read_text() == "weights at 100"
    for path in [p for p in store.walk("checkpoints/pretrain/k1/step-000000100") if p.endswith("model")]:
        damage(store, path)
    for path in (tmp_path / "cache").glob("*/files/engine/model"):
        path.unlink()
    assert points.latest().step == 20
    assert "step 100 is damaged" in caplog.text and points.steps() == [5, 20]
    points.commit(100, model(tmp_path / "s100b", "again"), {"step": 100})
    assert (points.latest().path / "engine/model").read_text() == "again"
    points.prune(keep=1)
    assert points.steps() == [100]
    points.clear()
    assert points.steps() == [] and list(store.walk("checkpoints")) == []
    assert not list((tmp_path / "cache").glob("*/files")), "local copies go too"


def test_an_uncommitted_or_fenced_checkpoint_does_not_count(store: Store, tmp_path: Path) -> None:
    held = claims.try_acquire(store, "pretrain", "k1")
    held.release()
    claims.try_acquire(store, "pretrain", "k1").release()
    points = CheckpointStore.from_json(CheckpointStore(store, "pretrain", "k1", held).to_json())
    with pytest.raises(LeaseLost):
        points.commit(7, model(tmp_path / "s", "late"), {})
    assert points.steps() == [] and points.latest() is None


# --- processes --------------------------------------------------------------------------------------------------------


def test_a_store_opened_before_a_fork_works_in_the_child(store: Store) -> None:
    store.write_bytes("before", b"parent")
    pid = os.fork()
    if pid == 0:
        try:
            store.write_bytes("after", store.read_bytes("before") + b" and child")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert store.read_bytes("after") == b"parent and child"
    assert open_store(store.url).read_bytes("after") == b"parent and child"
