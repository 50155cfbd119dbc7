"""Garbage collection: nothing that is needed ever goes, everything else does, whatever runs or dies beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows import cli
from infra import claims, refs
from infra.artifacts import Manifest
from infra.census import Keep
from infra.checkpoints import CheckpointStore
from infra.checksum import checksum_of
from infra.collector import collect, look, restore
from infra.errors import StoreError, UsageError
from infra.store import Store
from infra.store_file import FileStore


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


@pytest.fixture(name="hand", scope="session")
def hand_fixture(load: Any) -> Any:
    """Artifacts committed by hand (`committed.py`)."""
    return load("unit/committed.py")


def objects(store: Store) -> list[str]:
    return [path for folder in ("artifacts", "files", "trash", "checkpoints") for path in store.walk(folder)]


def test_what_a_ref_a_run_or_a_kept_artifact_needs_stays(store: FileStore, hand: Any) -> None:
    data, old_data = hand.commit(store, "data"), hand.commit(store, "data", params={"v": 0})
    model, old_model = (
        hand.commit(store, "m", {"data": data}),
        hand.commit(store, "m", {"data": old_data}, params={"v": 0}),
    )
    oldest, of_run = hand.commit(store, "m", params={"v": 1}), hand.commit(store, "by-run")
    lost = hand.commit(store, "lost", {"data": data})
    for manifest in (oldest, old_model, model):
        refs.advance(store, "p/m/latest", manifest.ref)
    names = {"20260101-000000-aaaa": oldest, "20260102-000000-aaaa": lost, "20260103-000000-aaaa": of_run}
    for name, manifest in names.items():
        record = {"status": "ok", "stages": [{"artifact": manifest.ref.__dict__}, {"artifact": None}]}
        store.write_json(f"runs/{name}/run.json", record)
    hand.until_clean(store, Keep(grace=0, runs=1, history=2))
    assert [hand.stands(store, m) for m in (data, model, old_data, old_model, of_run)] == [True] * 5
    assert not hand.stands(store, lost) and not hand.stands(store, oldest)
    store.write_json(
        "runs/20250101-000000-aaaa/run.json", {"status": "running", "stages": [{"artifact": old_data.ref.__dict__}]}
    )
    hand.until_clean(store)
    assert hand.stands(store, old_data) and not hand.stands(store, old_model), (
        "a run that is not over keeps what it has"
    )


def test_dry_it_changes_nothing_and_says_what_and_why(
    store: FileStore, hand: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    hand.commit(store, "data", content="x" * 2_000_000)
    hand.age(store, 8)
    before = objects(store)
    assert cli.main(["gc", "--store", store.url]) == 0
    out = capsys.readouterr().out
    assert "1 artifact     dataset              2.00 MB  no ref, run or artifact" in out and "--delete" in out
    assert objects(store) == before
    assert cli.main(["gc", "--store", store.url, "--grace", "9"]) == 0
    assert "artifact " not in capsys.readouterr().out


def test_trash_first_and_bytes_only_after_the_grace(store: FileStore, hand: Any) -> None:
    made = hand.commit(store, "data", sources={"a": "0" * 64})
    keep = Keep(grace=7 * hand.DAY)
    collect(store, keep)
    assert hand.stands(store, made), "young"
    hand.age(store, 8)
    collect(store, keep)
    collect(store, keep)
    assert store.manifest("dataset", made.key) is None, "nobody can reuse it"
    assert cli.main(["gc", "--restore", f"dataset/{made.key[:8]}", "--store", store.url]) == 0
    assert hand.stands(store, made)
    hand.age(store, 8)
    collect(store, keep)
    hand.age(store, 6)
    collect(store, keep)
    assert len(objects(store)) == 4, "its files and its manifest wait"
    hand.age(store, 2)
    collect(store, keep)
    assert objects(store) == []
    with pytest.raises(UsageError, match="no artifact"):
        restore(store, "dataset", made.key)


def test_what_is_needed_again_comes_back_by_itself(store: FileStore, hand: Any) -> None:
    data = hand.commit(store, "data")
    model = hand.commit(store, "m", {"data": data})
    hand.age(store, 1)
    collect(store, hand.NOW)
    assert not hand.stands(store, model)
    refs.advance(store, "p/production", model.ref)
    hand.age(store, 1)
    collect(store, hand.NOW)
    assert hand.stands(store, model) and hand.stands(store, data) and not list(store.walk("trash"))


def test_a_restore_needs_its_bytes(store: FileStore, hand: Any) -> None:
    made = hand.commit(store, "data")
    hand.age(store, 1)
    collect(store, hand.NOW)
    store.delete_tree(f"{made.ref.prefix}/{made.attempt}")
    with pytest.raises(StoreError, match="1 of its files are gone"):
        restore(store, "dataset", made.key)


def test_what_somebody_works_on_is_left_alone(store: FileStore, hand: Any) -> None:
    made, unfinished = hand.commit(store, "data"), "b" * 64
    store.write_bytes(f"artifacts/pretrain/{unfinished}/attempt/payload/x", b"x")
    store.write_bytes(f"checkpoints/pretrain/{unfinished}/step-000000001/a/files/x", b"x")
    one = claims.try_acquire(store, "dataset", made.key)
    two = claims.try_acquire(store, "pretrain", unfinished)
    assert one and two
    for _ in range(2):
        for path in (*store.root.glob("artifacts/**/*"), *store.root.glob("checkpoints/**/*")):
            os.utime(path, (1.0, 1.0))
        collect(store, hand.NOW)
    assert hand.stands(store, made) and len(objects(store)) == 5
    one.release()
    two.release()
    hand.until_clean(store)
    assert objects(store) == []


def test_a_claim_without_a_sign_of_life_protects_nothing(store: FileStore) -> None:
    key = "b" * 64
    store.write_json(f"claims/pretrain/{key}/000001.json", {"owner": "x", "lease": 10.0, "machine": "another"})
    assert claims.held(store, store.now()) == {("pretrain", key)}
    assert claims.held(store, store.now() + 31) == set()
    store.write_json(f"claims/pretrain/{key}/000001.beat.json", {"count": 3, "released": True})
    assert claims.held(store, store.now()) == set()


def test_damage_that_hides_what_is_needed_stops_it(store: FileStore, hand: Any) -> None:
    data = hand.commit(store, "data")
    model, other = hand.commit(store, "m", {"data": data}), hand.commit(store, "other", shared={"x": "both"})
    refs.advance(store, "p/m/latest", model.ref)
    store.write_bytes(f"{other.ref.prefix}/manifest.json", b"{")
    hand.until_clean(store)
    assert len(list(store.walk("files"))) == 1 and "damaged" in look(store, hand.NOW).waits
    path = f"{model.ref.prefix}/manifest.json"
    whole = store.read_json(path)
    store.write_json(path, [])
    plan = collect(store, hand.NOW)
    assert "is damaged, so what it was made" in plan.stays and not plan.to_trash
    newer = {name: value for name, value in whole.items() if name != "checksum"} | {"format": 3}
    store.write_json(path, {**newer, "checksum": checksum_of(newer)})
    with pytest.raises(StoreError, match="is not 2"):
        collect(store, hand.NOW)
    assert hand.stands(store, data)


def test_checkpoints_go_when_no_run_will_go_on_from_them(store: FileStore, hand: Any, tmp_path: Path) -> None:
    (tmp_path / "w").write_text("weights")
    done = hand.commit(store, "m", kind="pretrain")
    said = hand.commit(
        store, "m", kind="pretrain", params={"v": 2}, producer={"execution": {"checkpoint": {"permanent_every": 5}}}
    )
    for manifest in (done, said):
        refs.advance(store, f"p/{manifest.key[:4]}/latest", manifest.ref)
    keys = {"done": done.key, "told": said.key, "interrupted": "c" * 64}
    for key in keys.values():
        CheckpointStore(store, "pretrain", key).commit(5, {"w": tmp_path / "w"}, {})
    hand.age(store, 3)
    collect(store, Keep(grace=4 * hand.DAY))
    assert all(CheckpointStore(store, "pretrain", key).steps() == [5] for key in keys.values())
    collect(store, Keep(grace=2 * hand.DAY))
    left = {name: CheckpointStore(store, "pretrain", key).steps() for name, key in keys.items()}
    assert left == {"done": [], "told": [5], "interrupted": []}


def part(hand: Any, store: Store, kind: str, identity: dict[str, Any], **files: str) -> Manifest:
    made: Manifest = hand.commit(store, "", kind=kind, identity=identity, shared=files, producer={})
    return made


def test_parts_stay_with_the_dataset_that_is_made_of_them(store: FileStore, hand: Any) -> None:
    """As `tasks/stages/dataset.py` makes them: rows name their prepared shard, the dataset shares the rows' files."""
    made: dict[str, list[Manifest]] = {}
    for version in ("new", "old"):
        shas = {name: digit * 64 for name, digit in (("a", "1"), ("b", "2" if version == "new" else "3"))}
        one, empty = (
            part(hand, store, "prepared", {"files": [[name, sha]], "how": version}, rows=f"rows {sha} {version}")
            for name, sha in shas.items()
        )
        chosen = {"train": f"train {version}", "test": "frozen"}
        rows = part(hand, store, "rows", {"rows": one.payload[0].sha256}, **chosen)
        data = hand.commit(store, "data", params={"v": version}, sources=shas, shared=chosen)
        made[version] = [data, rows, one, empty]
    refs.advance(store, "p/data/latest", made["new"][0].ref)
    hand.until_clean(store)
    assert [hand.stands(store, m) for m in made["new"]] == [True] * 4, "also the shard that no row was chosen of"
    assert [store.manifest(m.kind, m.key) for m in made["old"]] == [None] * 4
    assert len(list(store.walk("files"))) == 4, "rows of one, of the empty shard, and the chosen rows"


def test_parts_wait_while_a_stage_that_shares_files_is_at_work(store: FileStore, hand: Any) -> None:
    made = part(hand, store, "prepared", {"files": []}, rows="rows")
    refs.advance(store, "p/m/latest", hand.commit(store, "m", kind="pretrain").ref)
    with claims.try_acquire(store, "pretrain", "a" * 64) as training, claims.try_acquire(store, "dataset", "b" * 64):
        assert training is not None
        hand.until_clean(store)
        assert hand.stands(store, made)
        assert "a stage of kind dataset is at work" in look(store, hand.NOW).waits
    with claims.try_acquire(store, "pretrain", "a" * 64):
        hand.until_clean(store)
    assert store.manifest("prepared", made.key) is None and not store.list("files"), "a training shares no files"


def test_a_file_shared_with_something_needed_stays(store: FileStore, hand: Any) -> None:
    keep = hand.commit(store, "data", params={"v": 1}, shared={"x": "both", "y": "mine"})
    drop = hand.commit(store, "data", params={"v": 2}, shared={"x": "both", "z": "theirs"})
    refs.advance(store, "r", keep.ref)
    hand.until_clean(store)
    assert hand.stands(store, keep) and not store.exists(drop.payload[1].shared_path)


@st.composite
def stores(draw: st.DrawFn) -> dict[str, Any]:
    """Artifacts (each made from earlier ones, sharing files or not), refs with a history, runs, and who is old."""
    count = draw(st.integers(1, 8))
    some = st.lists(st.integers(0, count - 1), max_size=3)
    return {
        "inputs": [draw(st.lists(st.integers(0, i - 1), max_size=2)) if i else [] for i in range(count)],
        "shared": [draw(st.sets(st.integers(0, 3), max_size=2)) for _ in range(count)],
        "refs": draw(st.lists(st.lists(st.integers(0, count - 1), min_size=1, max_size=4), max_size=2)),
        "runs": draw(st.lists(st.tuples(st.sampled_from(["ok", "running", "killed"]), some), max_size=3)),
        "young": draw(st.sets(st.integers(0, count - 1), max_size=2)),
        "keep": (draw(st.integers(0, 2)), draw(st.integers(1, 3))),
    }


@settings(max_examples=40)
@given(stores())
def test_nothing_reachable_goes_and_all_else_that_is_old_does(
    tmp_path_factory: pytest.TempPathFactory, hand: Any, drawn: dict[str, Any]
) -> None:
    store = FileStore(tmp_path_factory.mktemp("store"))
    made = []
    for i, inputs in enumerate(drawn["inputs"]):
        shared = {f"s{n}": f"shared {n}" for n in drawn["shared"][i]}
        made.append(
            hand.commit(
                store, f"s{i}", {"x": [made[j] for j in inputs]}, params={"i": i}, shared=shared, content=f"{i}"
            )
        )
    runs, history = drawn["keep"]
    needed: set[int] = set()
    for number, moves in enumerate(drawn["refs"]):
        entries = [refs.advance(store, f"r{number}", made[i].ref) for i in moves]
        values = [moves[k] for k in sorted({entry.number: k for k, entry in enumerate(entries)}.values())]
        needed |= set(values[-history:])
    for number, (status, named) in enumerate(drawn["runs"]):
        stages = [{"artifact": made[i].ref.__dict__} for i in named]
        said = "running" if status == "killed" else status
        store.write_json(f"runs/run-{number}/run.json", {"status": said, "stages": stages})
        if status == "running" or number >= len(drawn["runs"]) - runs:
            needed |= set(named)
    while more := {j for i in needed for j in drawn["inputs"][i]} - needed:
        needed |= more
    hand.age(store, 10)
    for number, (status, _) in enumerate(drawn["runs"]):
        if status == "running":
            os.utime(store.root / f"runs/run-{number}/run.json")
    for i in drawn["young"]:
        for path in store.root.glob(f"{made[i].ref.prefix}/**/*"):
            os.utime(path)
    keep = Keep(grace=5 * hand.DAY, runs=runs, history=history)
    for _ in range(2):
        collect(store, keep)
        for path in store.root.glob("trash/**/*.json"):
            os.utime(path, (1.0, 1.0))
    left = {i for i, manifest in enumerate(made) if store.manifest("dataset", manifest.key) is not None}
    assert left == needed | drawn["young"]
    assert all(hand.stands(store, made[i]) for i in left)
    names = {entry.shared_path for i in left for entry in made[i].payload if entry.shared}
    assert set(store.walk("files")) == names and not list(store.walk("trash"))
    assert {path.split("/")[2] for path in store.walk("artifacts")} == {made[i].key for i in left}
