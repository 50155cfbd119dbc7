"""Garbage collection of a store with damage in it, and with runs that were killed: it neither stops nor takes a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows import cli
from infra import refs
from infra.artifacts import Manifest
from infra.collector import collect, look
from infra.errors import StoreError
from infra.process_id import this_process
from infra.store_file import FileStore


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


@pytest.fixture(name="hand", scope="session")
def hand_fixture(load: Any) -> Any:
    """Artifacts committed by hand (`committed.py`)."""
    return load("unit/committed.py")


def model(store: FileStore, hand: Any, version: int) -> Manifest:
    made: Manifest = hand.commit(store, "m", kind="model", params={"v": version})
    return made


def test_a_killed_run_pins_what_it_has_for_a_day(store: FileStore, hand: Any) -> None:
    made = {name: hand.commit(store, name) for name in ("here", "elsewhere", "living")}
    gone = {**this_process(), "pid": 2**22 + 1}
    processes = {"here": gone, "elsewhere": {**gone, "machine": "another"}, "living": this_process()}
    for name, process in processes.items():
        stages = [{"artifact": made[name].ref.__dict__}]
        store.write_json(f"runs/{name}/run.json", {"status": "running", "process": process, "stages": stages})
    hand.age(store, 0.9)
    collect(store, hand.NOW)
    assert all(hand.stands(store, manifest) for manifest in made.values())
    hand.age(store, 0.2)
    collect(store, hand.NOW)
    assert [hand.stands(store, manifest) for manifest in made.values()] == [False, False, True]


@pytest.mark.parametrize("how", ["damaged", "dangling"])
def test_a_ref_that_names_nothing_lets_no_model_go(store: FileStore, hand: Any, how: str) -> None:
    first, second = model(store, hand, 1), model(store, hand, 2)
    refs.advance(store, "p/production", first.ref)
    refs.advance(store, "p/production", second.ref)
    path = "refs/p/production/000002.json" if how == "damaged" else f"{second.ref.prefix}/manifest.json"
    store.write_bytes(path, b"nothing") if how == "damaged" else store.delete(path)
    hand.age(store, 1)
    unneeded = hand.commit(store, "other")
    hand.age(store, 1)
    third = model(store, hand, 3)
    hand.age(store, 1)
    command = ["gc", "--delete", "--grace", "0", "--keep-history", "1", "--store", store.url]
    assert cli.main(command) == 3
    with pytest.raises(StoreError, match=r"p/production(.|\n)*forgeline rollback p/production(.|\n)*forgeline promote"):
        look(store, hand.NOW)
    assert all(hand.stands(store, one) for one in (first, third, unneeded))
    assert cli.main(["rollback", "p/production", "--store", store.url]) == 0, "as it says"
    hand.age(store, 1)
    assert cli.main(command) == 0
    assert [hand.stands(store, one) for one in (first, third, unneeded)] == [True, False, False]


def test_a_ref_that_names_nothing_does_not_matter_where_no_model_would_go(store: FileStore, hand: Any) -> None:
    lost = model(store, hand, 1)
    refs.advance(store, "p/production", lost.ref)
    store.delete(f"{lost.ref.prefix}/manifest.json")
    other = hand.commit(store, "other")
    hand.until_clean(store)
    assert not hand.stands(store, other)


def test_a_damaged_latest_keeps_what_its_stage_made(store: FileStore, hand: Any, capsys: Any) -> None:
    made, other = hand.commit(store, "s", params={"v": 1}), hand.commit(store, "t")
    refs.advance(store, "p/s/latest", made.ref)
    store.write_bytes("refs/p/s/latest/000001.json", b"[]")
    hand.age(store, 1)
    assert cli.main(["gc", "--delete", "--grace", "0", "--store", store.url]) == 0
    assert "damaged: ref p/s/latest has a damaged entry" in capsys.readouterr().out
    assert hand.stands(store, made) and not hand.stands(store, other)


def test_an_older_damaged_entry_keeps_every_model_of_its_kind(store: FileStore, hand: Any) -> None:
    made = [model(store, hand, version) for version in (1, 2)]
    for one in made:
        refs.advance(store, "p/production", one.ref)
    store.write_bytes("refs/p/production/000001.json", b"")
    other = hand.commit(store, "other")
    hand.age(store, 1)
    collect(store, hand.NOW.__class__(grace=0, runs=0, history=2))
    assert [hand.stands(store, one) for one in (*made, other)] == [True, True, False]


def test_one_bad_run_record_is_left_out_and_named(store: FileStore, hand: Any) -> None:
    made = hand.commit(store, "s")
    store.write_json("runs/1/run.json", {"status": "ok", "stages": [{"artifact": made.ref.__dict__}]})
    for name, damage in (("2", b"null"), ("3", b'{"status": "ok", "stages": [[]]}'), ("4", b"{")):
        store.write_bytes(f"runs/{name}/run.json", damage)
    store.write_bytes("runs/5", b"what is this")
    hand.age(store, 1)
    plan = collect(store, hand.NOW.__class__(grace=0, runs=1, history=1))
    assert hand.stands(store, made), "the last run is the last that can be read"
    assert sorted(note[:17] for note in plan.notes) == [f"run {name} is left out" for name in "234"]


def test_damage_in_the_trash_waits_for_the_grace_and_goes(store: FileStore, hand: Any) -> None:
    made = hand.commit(store, "s")
    hand.age(store, 1)
    collect(store, hand.NOW)
    (path,) = store.walk("trash")
    store.write_bytes(path, b'{"format": NaN}')
    keep = hand.NOW.__class__(grace=hand.DAY, runs=0, history=1)
    assert [note.startswith(path) for note in collect(store, keep).notes] == [True]
    assert cli.main(["gc", "--restore", f"dataset/{made.key[:9]}", "--store", store.url]) == 3
    assert store.exists(path) and list(store.walk(f"artifacts/dataset/{made.key}"))
    hand.age(store, 2)
    for _ in range(2):
        collect(store, keep)
    assert not list(store.walk("trash")) and not list(store.walk("artifacts"))


def test_foreign_files_in_the_store_do_not_stop_it(store: FileStore, hand: Any) -> None:
    for path in (
        "artifacts/x",
        "artifacts/k/x",
        "claims/x",
        "claims/k/1/note.txt",
        "checkpoints/x",
        "refs/x",
        "trash/x",
    ):
        store.write_bytes(path, b"x")
    (store.root / "runs/empty").mkdir(parents=True)
    hand.age(store, 1)
    collect(store, hand.NOW)
