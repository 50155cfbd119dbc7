"""The folder store: kills at every step, full and read-only disks, constant memory, URLs."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import product, takewhile
from pathlib import Path
from typing import Any

import pytest

from infra import refs
from infra.artifacts import ArtifactRef, Manifest
from infra.checkpoints import CheckpointStore
from infra.errors import StoreError
from infra.open_store import open_store
from infra.store import Store

KILLED = 9
NOBODY = 65534
WATCHED = {"open", "os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir", "os.chmod"}
SAVES = list(product((1, 2, 4), (1, 3), (1, 4), (1, 2))) if os.environ.get("FORGELINE_KILLS") else [(2, 1, 4, 1)]
"""(ranks, files of each, checkpoints before, checkpoints kept): all of them in `make soak`."""


def out(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    (folder / "weights").write_text("w" * 1000)
    (folder / "sub/config").write_text("{}")
    return folder


def files(folder: Path) -> dict[str, Path]:
    return {name: folder / name for name in ("weights", "sub/config")}


def commit(store: Store, folder: Path, attempt: str = "a") -> Manifest:
    return store.commit(
        kind="k", type="model", key="1", attempt=attempt, payload_dir=folder, records_dir=folder, identity={}
    )


# --- killed at any moment ---------------------------------------------------------------------------------------------


def killed_before_operation(number: int, root: Path, work: Callable[[], Any]) -> bool:
    """Run `work` in a forked process that dies, unannounced, before its `number`-th change of or look into `root`."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def hook(event: str, args: tuple[Any, ...]) -> None:
            nonlocal count
            if event in WATCHED and any(str(root) in str(arg) for arg in args):
                count += 1
                if count == number:
                    os._exit(KILLED)

        try:
            sys.addaudithook(hook)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, KILLED), "the work itself failed"
    return status == KILLED


def every_kill(tmp_path: Path, prepare: Callable[[Store], None], work: Callable[[Store], Any]) -> Any:
    """Yields the store after a kill at operation 1, 2, ... of `work`, until it is no longer reached."""
    for number in range(1, 500):
        store = open_store(str(tmp_path / f"store{number}"))
        prepare(store)
        killed = killed_before_operation(number, tmp_path / f"store{number}", lambda store=store: work(store))
        yield store
        if not killed:
            assert number > 5, "the kills must have happened"
            return
    raise AssertionError("the work never ended")


def test_a_killed_commit_leaves_nothing_or_everything(tmp_path: Path) -> None:
    folder = out(tmp_path / "out")
    seen = set()
    for store in every_kill(tmp_path, lambda store: None, lambda store: commit(store, folder)):
        found = store.manifest("k", "1")
        seen.add(found is None)
        made = commit(store, folder, "b")
        assert made.attempt == ("a" if found else "b")
        assert (store.fetch(made) / "weights").read_text() == "w" * 1000
    assert seen == {True, False}


def test_a_killed_ref_move_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    old, new = ArtifactRef("k", "old", "d", "model"), ArtifactRef("k", "new", "d", "model")
    for store in every_kill(tmp_path, lambda s: refs.advance(s, "r", old), lambda s: refs.advance(s, "r", new)):
        assert refs.get(store, "r").artifact in (old, new)
        refs.advance(store, "r", new)
        assert refs.get(store, "r").artifact == new


def test_a_killed_checkpoint_or_prune_leaves_one_to_resume_from(tmp_path: Path) -> None:
    folder = out(tmp_path / "out")

    def prepare(store: Store) -> None:
        CheckpointStore(store, "k", "1").commit(1, files(folder), {"step": 1})

    def work(store: Store) -> None:
        CheckpointStore(store, "k", "1").commit(2, files(folder), {"step": 2})
        CheckpointStore(store, "k", "1").prune(keep=1)

    steps = set()
    for store in every_kill(tmp_path, prepare, work):
        latest = CheckpointStore(store, "k", "1").latest()
        assert latest.state == {"step": latest.step} and (latest.path / "weights").read_text() == "w" * 1000
        steps.add(latest.step)
    assert steps == {1, 2}


def kill_points_of_a_save(place: Path, ranks: int, count: int, before: int, keep: int) -> int:
    """Kill at every operation of a save that follows `before` others; returns how many kills that were."""
    shards = [out(place / f"rank{rank}") / "weights" for rank in range(ranks)]

    def save(store: Store, step: int) -> None:
        saved = CheckpointStore(store, "k", "1")
        for rank in reversed(range(ranks)):
            shards[rank].write_text(f"rank {rank} at {step}")
            named = {f"rank-{rank}-{number}": shards[rank] for number in range(count)}
            saved.commit(step, named, {"step": step}, attempt=f"a{step}", rank=rank, ranks=ranks)
        saved.prune(keep, permanent_every=3, anchor_every=2)

    def prepare(store: Store) -> None:
        for step in range(1, before + 1):
            save(store, step)

    points = 0
    for store in every_kill(place, prepare, lambda s: save(s, before + 1)):
        points += 1
        saved = CheckpointStore(store, "k", "1")
        for step in saved.steps():
            found = saved.load(step)
            whole = {f"rank-{r}-{n}": f"rank {r} at {step}" for r in range(ranks) for n in range(count)}
            assert {path.name: path.read_text() for path in found.path.iterdir()} == whole, "torn"
            assert found.state == {"step": step}
        assert saved.latest().step in (before, before + 1)
        save(store, before + 1)
        save(store, before + 2)
        assert saved.latest().step == before + 2
        shutil.rmtree(store.local_folder("checkpoints").parent)
    return points


@pytest.mark.parametrize("case", SAVES, ids=lambda case: "-".join(map(str, case)))
def test_no_kill_amid_a_save_loses_more_than_that_save(tmp_path: Path, case: tuple[int, int, int, int]) -> None:
    """Many syncs to disk, so in memory where there is a folder for that."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        points = kill_points_of_a_save(Path(folder), *case)
    sys.stderr.write(f"{points} kill points, 0 torn loads\n")
    assert points > 20


def test_a_killed_quarantine_can_be_finished(tmp_path: Path) -> None:
    folder = out(tmp_path / "out")

    def prepare(store: Store) -> None:
        commit(store, folder)
        store.write_bytes("artifacts/k/1/a/payload/weights", b"v" * 1000)

    for store in every_kill(tmp_path, prepare, lambda s: s.quarantine("k", "1")):
        store.quarantine("k", "1")
        assert commit(store, folder, "b").attempt == "b"
        assert any(path.startswith("quarantine/k/1/a-") for path in store.walk("quarantine"))


# --- disks ------------------------------------------------------------------------------------------------------------


def in_child(work: Callable[[], None], prepare: Callable[[], None]) -> str:
    """What `work` raised (its text) in a forked process, after `prepare` limited that process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = "nothing was raised"
        try:
            prepare()
            work()
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        finally:
            os.write(writer, text.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    os.waitpid(pid, 0)
    return text


def test_no_space_is_named_and_leaves_no_debris(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    folder = out(tmp_path / "out")
    (folder / "weights").write_bytes(bytes(3 << 20))
    said = in_child(
        lambda: commit(store, folder), lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    )
    assert said.startswith("StoreError") and "no space left" in said and "Free space" in said
    assert store.manifest("k", "1") is None and list((tmp_path / "store/.tmp").iterdir()) == []


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        store = open_store(str(disk / "store"))
        folder = out(tmp_path / "out")
        (folder / "weights").write_bytes(bytes(3 << 20))
        with pytest.raises(StoreError, match="no space left"):
            commit(store, folder)
        (folder / "weights").write_bytes(b"small")
        assert (store.fetch(commit(store, folder)) / "weights").read_bytes() == b"small", "the space is free again"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_read_only_folder_is_refused_when_opened_for_writing(tmp_path: Path) -> None:
    open_store(str(tmp_path / "store"), probe=True).write_bytes("x", b"1")
    # A child that gives up root must still reach the folder; pytest makes its folders private.
    for parent in takewhile(lambda path: path != Path(tempfile.gettempdir()), (tmp_path, *tmp_path.parents)):
        parent.chmod(0o755)
    for path in (tmp_path / "store", *(tmp_path / "store").rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    said = in_child(
        lambda: open_store(str(tmp_path / "store"), probe=True),
        lambda: os.setuid(NOBODY) if os.getuid() == 0 else None,
    )
    assert said.startswith("StoreError") and "not writable" in said and str(tmp_path / "store") in said
    read = in_child(
        lambda: open_store(str(tmp_path / "store")).read_json("x"),
        lambda: os.setuid(NOBODY) if os.getuid() == 0 else None,
    )
    assert read == "nothing was raised", "reading from it is fine"


def test_a_large_upload_takes_no_more_memory(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (tmp_path / "out/big").open("wb") as stream:
        stream.truncate(256 << 20)
    code = """
import re, sys
from pathlib import Path
from infra.open_store import open_store
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
store, before = open_store(sys.argv[1]), peak()
made = store.commit(kind="k", type="t", key="1", attempt="a", payload_dir=Path(sys.argv[2]), identity={})
store.fetch(made)
print(peak() - before)
"""
    run = [sys.executable, "-c", code, str(tmp_path / "store"), str(tmp_path / "out")]
    grown = int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    (tmp_path / "store/artifacts/k/1/a/payload/big").unlink()
    assert grown < 64


# --- URLs and housekeeping --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host/x", "unknown store scheme 'ftp'"),
        ("s3://", "not a bucket"),
        ("s3://[/x", "not a bucket"),
        ("s3://two words/x", "not a bucket"),
        ("s3://key:secret@bucket/x", "not a bucket"),
        ("file://relative/x", "not a folder"),
        ("file://", "not a folder"),
        ("", "not a folder"),
        ("s3://bucket/a/../b", "unsafe path"),
    ],
)
def test_bad_urls_say_what_is_possible(url: str, said: str) -> None:
    with pytest.raises(StoreError, match=said) as caught:
        open_store(url)
    assert caught.value.hint and "secret" not in str(caught.value).replace("AWS_SECRET", "")


def test_a_folder_store_url_opens_the_same_store_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("a folder/with ü")
    store.write_bytes("x", b"1")
    monkeypatch.chdir("/")
    assert store.url.startswith("file:///") and open_store(store.url).read_bytes("x") == b"1"


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="not a folder"):
        open_store(str(tmp_path / "file"))
    with pytest.raises(StoreError, match="file is where a folder should be"):
        open_store(str(tmp_path / "file/store"), probe=True)


def test_opening_a_store_to_read_leaves_no_trace(tmp_path: Path) -> None:
    open_store(str(tmp_path / "store")).manifest("k", "1")
    assert not (tmp_path / "store").exists()


def test_leftovers_of_killed_writers_are_swept_when_old(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), probe=True)
    old, new = tmp_path / "store/.tmp/old", tmp_path / "store/.tmp/new"
    old.write_text("")
    new.write_text("")
    os.utime(old, (0, 0))
    store.probe()
    assert not old.exists() and new.exists() and list(store.walk(".probe")) == []


def test_a_file_nobody_listed_beside_the_payload_is_refused(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    made = commit(store, out(tmp_path / "out"))
    (tmp_path / "store/artifacts/k/1/a/payload/adapter.json").write_text("{}")
    with pytest.raises(StoreError, match=r"adapter.json: not in the manifest"):
        store.fetch(made)
