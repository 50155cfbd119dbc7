"""Garbage collection: nothing that is needed ever goes, everything else does, whatever runs or dies beside it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows import cli
from flows.live import LiveView
from flows.run import _settled
from infra import claims, refs
from infra.artifacts import Manifest
from infra.census import Keep
from infra.checkpoints import CheckpointStore
from infra.collector import collect, look, restore
from infra.errors import StoreError, UsageError
from infra.store import Store
from infra.store_file import FileStore
from tasks.pipeline import load_pipeline
from tasks.plan import make_plan
from tasks.run_record import RunRecord

NOW = Keep(grace=0, runs=0, history=1)
DAY = 86400.0


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


@pytest.fixture
def commit(load: Any) -> Any:
    return load("unit/committed.py").commit


def age(store: FileStore, days: float) -> None:
    """Make everything that many days older, but for the heartbeats of who is at work."""
    for path in store.root.rglob("*"):
        if path.is_file() and not path.is_relative_to(store.root / "claims"):
            at = path.stat().st_mtime - days * DAY
            os.utime(path, (at, at))


def stands(store: Store, manifest: Manifest) -> bool:
    """Whether the artifact is there with every byte."""
    found = store.manifest(manifest.kind, manifest.key)
    return found is not None and store.fetch(found).is_dir() and (store.fetch_records(found) or Path("/")).is_dir()


def until_clean(store: FileStore, keep: Keep = NOW) -> None:
    for _ in range(2):
        age(store, 0.01)
        collect(store, keep)


def objects(store: Store) -> list[str]:
    return [path for folder in ("artifacts", "files", "trash", "checkpoints") for path in store.walk(folder)]


def test_what_a_ref_a_run_or_a_kept_artifact_needs_stays(store: FileStore, commit: Any) -> None:
    data, old_data = commit(store, "data"), commit(store, "data", params={"v": 0})
    model, old_model = commit(store, "m", {"data": data}), commit(store, "m", {"data": old_data}, params={"v": 0})
    oldest, of_run = commit(store, "m", params={"v": 1}), commit(store, "by-run")
    lost = commit(store, "lost", {"data": data})
    for manifest in (oldest, old_model, model):
        refs.advance(store, "p/m/latest", manifest.ref)
    names = {"20260101-000000-aaaa": oldest, "20260102-000000-aaaa": lost, "20260103-000000-aaaa": of_run}
    for name, manifest in names.items():
        record = {"status": "ok", "stages": [{"artifact": manifest.ref.__dict__}, {"artifact": None}]}
        store.write_json(f"runs/{name}/run.json", record)
    until_clean(store, Keep(grace=0, runs=1, history=2))
    assert [stands(store, m) for m in (data, model, old_data, old_model, of_run)] == [True] * 5
    assert not stands(store, lost) and not stands(store, oldest)
    store.write_json(
        "runs/20250101-000000-aaaa/run.json", {"status": "running", "stages": [{"artifact": old_data.ref.__dict__}]}
    )
    until_clean(store)
    assert stands(store, old_data) and not stands(store, old_model), "a run that is not over keeps what it has"


def test_dry_it_changes_nothing_and_says_what_and_why(
    store: FileStore, commit: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    commit(store, "data", content="x" * 2_000_000)
    age(store, 8)
    before = objects(store)
    assert cli.main(["gc", "--store", store.url]) == 0
    out = capsys.readouterr().out
    assert "1 artifact     dataset              2.00 MB  no ref, run or artifact" in out and "--delete" in out
    assert objects(store) == before
    assert cli.main(["gc", "--store", store.url, "--grace", "9"]) == 0
    assert "artifact " not in capsys.readouterr().out


def test_trash_first_and_bytes_only_after_the_grace(store: FileStore, commit: Any) -> None:
    made = commit(store, "data", sources={"a": "0" * 64})
    keep = Keep(grace=7 * DAY)
    collect(store, keep)
    assert stands(store, made), "young"
    age(store, 8)
    collect(store, keep)
    collect(store, keep)
    assert store.manifest("dataset", made.key) is None, "nobody can reuse it"
    assert restore(store, "dataset", made.key[:8]).key == made.key and stands(store, made)
    age(store, 8)
    collect(store, keep)
    age(store, 6)
    collect(store, keep)
    assert len(objects(store)) == 3, "its files and its manifest wait"
    age(store, 2)
    collect(store, keep)
    assert objects(store) == []
    with pytest.raises(UsageError, match="no artifact"):
        restore(store, "dataset", made.key)


def test_what_is_needed_again_comes_back_by_itself(store: FileStore, commit: Any) -> None:
    data = commit(store, "data")
    model = commit(store, "m", {"data": data})
    age(store, 1)
    collect(store, NOW)
    assert not stands(store, model)
    refs.advance(store, "p/production", model.ref)
    age(store, 1)
    collect(store, NOW)
    assert stands(store, model) and stands(store, data) and not list(store.walk("trash"))


def test_a_restore_needs_its_bytes(store: FileStore, commit: Any) -> None:
    made = commit(store, "data")
    age(store, 1)
    collect(store, NOW)
    store.delete_tree(f"{made.ref.prefix}/{made.attempt}")
    with pytest.raises(StoreError, match="1 of its files are gone"):
        restore(store, "dataset", made.key)


def test_what_somebody_works_on_is_left_alone(store: FileStore, commit: Any) -> None:
    made, unfinished = commit(store, "data"), "b" * 64
    store.write_bytes(f"artifacts/pretrain/{unfinished}/attempt/payload/x", b"x")
    store.write_bytes(f"checkpoints/pretrain/{unfinished}/step-000000001/a/files/x", b"x")
    one = claims.try_acquire(store, "dataset", made.key)
    two = claims.try_acquire(store, "pretrain", unfinished)
    assert one and two
    for _ in range(2):
        for path in (*store.root.glob("artifacts/**/*"), *store.root.glob("checkpoints/**/*")):
            os.utime(path, (1.0, 1.0))
        collect(store, NOW)
    assert stands(store, made) and len(objects(store)) == 4
    one.release()
    two.release()
    until_clean(store)
    assert objects(store) == []


def test_a_claim_without_a_sign_of_life_protects_nothing(store: FileStore) -> None:
    key = "b" * 64
    store.write_json(f"claims/pretrain/{key}/000001.json", {"owner": "x", "lease": 10.0, "machine": "another"})
    assert claims.held(store, store.now()) == {("pretrain", key)}
    assert claims.held(store, store.now() + 31) == set()
    store.write_json(f"claims/pretrain/{key}/000001.beat.json", {"count": 3, "released": True})
    assert claims.held(store, store.now()) == set()


def test_checkpoints_go_when_no_run_will_go_on_from_them(store: FileStore, commit: Any, tmp_path: Path) -> None:
    (tmp_path / "w").write_text("weights")
    done = commit(store, "m", kind="pretrain")
    told = commit(
        store, "m", kind="pretrain", params={"v": 2}, producer={"execution": {"checkpoint": {"permanent_every": 5}}}
    )
    for manifest in (done, told):
        refs.advance(store, f"p/{manifest.key[:4]}/latest", manifest.ref)
    keys = {"done": done.key, "told": told.key, "interrupted": "c" * 64}
    for key in keys.values():
        CheckpointStore(store, "pretrain", key).commit(5, {"w": tmp_path / "w"}, {})
    age(store, 3)
    collect(store, Keep(grace=4 * DAY))
    assert all(CheckpointStore(store, "pretrain", key).steps() == [5] for key in keys.values())
    collect(store, Keep(grace=2 * DAY))
    left = {name: CheckpointStore(store, "pretrain", key).steps() for name, key in keys.items()}
    assert left == {"done": [], "told": [5], "interrupted": []}


def part(commit: Any, store: Store, kind: str, identity: dict[str, Any], **files: str) -> Manifest:
    made: Manifest = commit(store, "", kind=kind, identity=identity, shared=files, producer={})
    return made


def test_parts_stay_with_the_dataset_that_is_made_of_them(store: FileStore, commit: Any) -> None:
    """As `tasks/stages/dataset.py` makes them: rows name their prepared shard, the dataset shares the rows' files."""
    made: dict[str, list[Manifest]] = {}
    for version in ("new", "old"):
        shas = {name: digit * 64 for name, digit in (("a", "1"), ("b", "2" if version == "new" else "3"))}
        one, empty = (
            part(commit, store, "prepared", {"files": [[name, sha]], "how": version}, rows=f"rows {sha} {version}")
            for name, sha in shas.items()
        )
        chosen = {"train": f"train {version}", "test": "frozen"}
        rows = part(commit, store, "rows", {"rows": one.payload[0].sha256}, **chosen)
        data = commit(store, "data", params={"v": version}, sources=shas, shared=chosen)
        made[version] = [data, rows, one, empty]
    refs.advance(store, "p/data/latest", made["new"][0].ref)
    until_clean(store)
    assert [stands(store, m) for m in made["new"]] == [True] * 4, "also the shard that no row was chosen of"
    assert [store.manifest(m.kind, m.key) for m in made["old"]] == [None] * 4
    assert len(list(store.walk("files"))) == 4, "rows of one, of the empty shard, and the chosen rows"


def test_parts_wait_while_a_stage_that_shares_files_is_at_work(store: FileStore, commit: Any) -> None:
    made = part(commit, store, "prepared", {"files": []}, rows="rows")
    refs.advance(store, "p/m/latest", commit(store, "m", kind="pretrain").ref)
    with claims.try_acquire(store, "pretrain", "a" * 64) as training, claims.try_acquire(store, "dataset", "b" * 64):
        assert training is not None
        until_clean(store)
        assert stands(store, made)
        assert "a stage of kind dataset is at work" in look(store, NOW).waits
    with claims.try_acquire(store, "pretrain", "a" * 64):
        until_clean(store)
    assert store.manifest("prepared", made.key) is None and not store.list("files"), "a training shares no files"


def test_a_file_shared_with_something_needed_stays(store: FileStore, commit: Any) -> None:
    keep = commit(store, "data", params={"v": 1}, shared={"x": "both", "y": "mine"})
    drop = commit(store, "data", params={"v": 2}, shared={"x": "both", "z": "theirs"})
    refs.advance(store, "r", keep.ref)
    until_clean(store)
    assert stands(store, keep) and not store.exists(drop.payload[1].shared_path)


class Killed(BaseException):
    """As SIGKILL would: nothing handles it."""


class Mortal(FileStore):
    """A store whose process dies before its nth change."""

    left = 10**9

    def _dies(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed

    def write_bytes(self, path: str, data: bytes) -> None:
        self._dies()
        super().write_bytes(path, data)

    def create(self, path: str, data: bytes) -> bool:
        self._dies()
        return super().create(path, data)

    def delete(self, path: str) -> None:
        self._dies()
        super().delete(path)

    def delete_tree(self, prefix: str) -> None:
        for path in list(self.walk(prefix)):
            self.delete(path)


def test_killed_at_any_point_another_round_finishes(tmp_path: Path, commit: Any) -> None:
    for death in range(200):
        store = Mortal(tmp_path / str(death))
        data = commit(store, "data", shared={"x": "both"}, content="c")
        model = commit(store, "m", {"data": data})
        lost = commit(store, "lost", {"data": data}, shared={"x": "both", "z": "theirs"}, sources={"a": "0" * 64})
        gone = commit(store, "gone", {"lost": lost})
        refs.advance(store, "r", model.ref)
        age(store, 1)
        collect(store, NOW)
        refs.advance(store, "back", lost.ref)
        refs.advance(store, "back", model.ref)
        age(store, 1)
        store.left, died = death, False
        try:
            collect(store, Keep(grace=0, runs=0, history=2 if death % 2 else 1))
        except Killed:
            died = True
        store.left = 10**9
        for manifest in (data, model, lost, gone):
            if store.manifest(manifest.kind, manifest.key) is not None:
                assert stands(store, manifest), "torn"
        assert stands(store, data) and stands(store, model)
        until_clean(store)
        assert not store.list("trash") and len(list(store.walk("files"))) == 1
        assert {path.split("/")[2] for path in store.walk("artifacts")} == {data.key, model.key}
        if not died:
            assert death > 5
            return
    raise AssertionError("it never came to its end")


@st.composite
def stores(draw: st.DrawFn) -> dict[str, Any]:
    """Artifacts (each made from earlier ones, sharing files or not), refs with a history, runs, and who is old."""
    count = draw(st.integers(1, 8))
    some = st.lists(st.integers(0, count - 1), max_size=3)
    return {
        "inputs": [draw(st.lists(st.integers(0, i - 1), max_size=2)) if i else [] for i in range(count)],
        "shared": [draw(st.sets(st.integers(0, 3), max_size=2)) for _ in range(count)],
        "refs": draw(st.lists(st.lists(st.integers(0, count - 1), min_size=1, max_size=4), max_size=2)),
        "runs": draw(st.lists(st.tuples(st.sampled_from(["ok", "running"]), some), max_size=3)),
        "young": draw(st.sets(st.integers(0, count - 1), max_size=2)),
        "keep": (draw(st.integers(0, 2)), draw(st.integers(1, 3))),
    }


@settings(max_examples=40)
@given(stores())
def test_nothing_reachable_goes_and_all_else_that_is_old_does(
    tmp_path_factory: pytest.TempPathFactory, load: Any, drawn: dict[str, Any]
) -> None:
    store = FileStore(tmp_path_factory.mktemp("store"))
    commit, made = load("unit/committed.py").commit, []
    for i, inputs in enumerate(drawn["inputs"]):
        shared = {f"s{n}": f"shared {n}" for n in drawn["shared"][i]}
        made.append(
            commit(store, f"s{i}", {"x": [made[j] for j in inputs]}, params={"i": i}, shared=shared, content=f"{i}")
        )
    runs, history = drawn["keep"]
    needed: set[int] = set()
    for number, moves in enumerate(drawn["refs"]):
        entries = [refs.advance(store, f"r{number}", made[i].ref) for i in moves]
        values = [moves[k] for k in sorted({entry.number: k for k, entry in enumerate(entries)}.values())]
        needed |= set(values[-history:])
    for number, (status, named) in enumerate(drawn["runs"]):
        stages = [{"artifact": made[i].ref.__dict__} for i in named]
        store.write_json(f"runs/run-{number}/run.json", {"status": status, "stages": stages})
        if status == "running" or number >= len(drawn["runs"]) - runs:
            needed |= set(named)
    while more := {j for i in needed for j in drawn["inputs"][i]} - needed:
        needed |= more
    age(store, 10)
    for i in drawn["young"]:
        for path in store.root.glob(f"{made[i].ref.prefix}/**/*"):
            os.utime(path)
    keep = Keep(grace=5 * DAY, runs=runs, history=history)
    for _ in range(2):
        collect(store, keep)
        for path in store.root.glob("trash/**/*.json"):
            os.utime(path, (1.0, 1.0))
    left = {i for i, manifest in enumerate(made) if store.manifest("dataset", manifest.key) is not None}
    assert left == needed | drawn["young"]
    assert all(stands(store, made[i]) for i in left)
    names = {entry.shared_path for i in left for entry in made[i].payload if entry.shared}
    assert set(store.walk("files")) == names and not list(store.walk("trash"))
    assert {path.split("/")[2] for path in store.walk("artifacts")} == {made[i].key for i in left}


PIPELINE = """
name: p
stages:
  all: {dataset: {sources: [{files: "data/*.txt", format: text}]}}
  some: {dataset: {sources: [{stage: all}], split: {validation: SHARE, test: 0.1}}}
"""


class Between(FileStore):
    """A store in which something happens once, right after a manifest was read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.then: list[Callable[[], object]] = []

    def manifest(self, kind: str, key: str) -> Manifest | None:
        found = super().manifest(kind, key)
        if found is not None and self.then:
            self.then.pop()()
        return found


def test_what_is_collected_while_a_run_decides_to_reuse_it_is_made_again(tmp_path: Path, load: Any) -> None:
    (tmp_path / "data").mkdir()
    for i in range(40):
        (tmp_path / "data" / f"{i}.txt").write_text(f"The harbour has {i} things of kind {i * i}, it is said.\n")
    file = tmp_path / "pipeline.yaml"
    file.write_text("".join(PIPELINE.splitlines(keepends=True)[:4]))
    store = Between(tmp_path / "store")
    run = load("unit/committed.py").run
    first = run(file, store, tmp_path / "run-1")["all"]
    store.delete_tree("refs")

    def gone() -> None:
        until_clean(FileStore(store.root))
        assert store.root.joinpath("artifacts").exists() is False

    store.then = [gone]
    again = run(file, store, tmp_path / "run-2")["all"]
    assert not store.then and again.attempt != first.attempt and again.digest == first.digest
    assert stands(store, again) and refs.get(store, "p/all/latest").artifact == again.ref

    plan = make_plan(load_pipeline(file, [], store.url), store)
    record = RunRecord("r", load_pipeline(file, [], store.url), store)
    with LiveView([("all", "dataset")], quiet=True) as live:
        assert _settled(plan, record, store, live)
        store.delete(f"{again.ref.prefix}/manifest.json")
        assert not _settled(plan, record, store, live), "then the flow runs after all"
    assert record.data["stages"][0]["artifact"] is None


def test_a_collection_that_never_rests_breaks_no_run(tmp_path: Path, store: FileStore, load: Any) -> None:
    """Runs go back and forth between two settings, so each reuses what the last one left to the collection."""
    (tmp_path / "data").mkdir()
    for i in range(40):
        (tmp_path / "data" / f"{i}.txt").write_text(f"The harbour has {i} things of kind {i * i}, it is said.\n")
    file = tmp_path / "pipeline.yaml"
    ended, rounds, failures = threading.Event(), [0], list[BaseException]()

    def collect_on() -> None:
        while not ended.is_set():
            try:
                collect(store, NOW)
            except StoreError as error:
                failures.append(error)
            rounds[0] += 1

    thread = threading.Thread(target=collect_on)
    thread.start()
    digests: dict[str, set[str]] = {}
    try:
        for number, share in enumerate(("0.1", "0.3", "0.1", "0.3", "0.1")):
            file.write_text(PIPELINE.replace("SHARE", share))
            made = load("unit/committed.py").run(file, store, tmp_path / f"run-{number}", f"r{number}")
            for manifest in made.values():
                assert stands(store, manifest), "what a run ends with is there"
                digests.setdefault(manifest.key, set()).add(manifest.digest)
    finally:
        ended.set()
        thread.join()
    assert not failures and rounds[0] > 5
    assert len(digests) == 3 and all(len(of) == 1 for of in digests.values())
