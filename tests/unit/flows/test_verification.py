"""`forgeline verify` and `gc --verify`: each kind of damage is named with what to do; a sound store is said to be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows import cli
from flows.checks import store as store_checks
from infra import journal, refs
from infra.checkpoints import CheckpointStore
from infra.collector import collect
from infra.store_file import FileStore
from infra.verification import LAST, verify_store
from tasks.plan.watching import DECISIONS


@pytest.fixture(name="hand", scope="session")
def hand_fixture(load: Any) -> Any:
    return load("unit/committed.py")


@pytest.fixture
def store(tmp_path: Path, hand: Any) -> FileStore:
    """Of every kind of object one, or two: `p/m/latest` -> a model of data with a shared file."""
    store = FileStore(tmp_path / "store")
    data = hand.commit(store, "data", shared={"rows": "r" * 99}, sources={"a": "0" * 64})
    hand.commit(store, "part", kind="rows", shared={"rows": "r" * 99}, identity={"part": "rows"}, producer={})
    for version in (1, 2):
        made = hand.commit(store, "m", {"data": data}, params={"v": version}, content=f"model {version}")
        refs.advance(store, "p/m/latest", made.ref)
    hand.commit(store, "lost")
    hand.age(store, 9)
    collect(store, hand.NOW)
    (tmp_path / "w").write_text("weights")
    CheckpointStore(store, "pretrain", "k").commit(5, {"w": tmp_path / "w"}, {"step": 5}, attempt="a")
    decision = {"sources": "s", "datasets": {}, "reason": "new data", "run": 1, "at": "2026-01-01T00:00:00+00:00"}
    journal.append(store, "p/watch", 0, decision, DECISIONS)
    return store


def verify(store: FileStore, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = cli.main(["verify", *arguments, "--json", "--store", store.url])
    return code, json.loads(capsys.readouterr().out)


def flip(store: FileStore, path: str) -> None:
    data = bytearray(store.read_bytes(path))
    data[len(data) // 2] ^= 1
    store.write_bytes(path, bytes(data))


def test_a_sound_store_is_said_to_be_and_when(store: FileStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert "never verified" in store_checks.verified(store.url).said
    before = {path: store.read_bytes(path) for path in store.walk("artifacts")}
    assert cli.main(["verify", "--all", "--store", store.url]) == 0
    assert "3 artifacts, 1 checkpoints, 1 refs" in (out := capsys.readouterr().out) and "all in order" in out
    assert before == {path: store.read_bytes(path) for path in store.walk("artifacts")}
    finding = store_checks.verified(store.url)
    assert finding.level == "ok" and "3 artifacts" in finding.said and "s ago, all in order" in finding.said
    last = json.loads(store.read_bytes(LAST))
    store.write_json(LAST, {**last, "at": "2020-01-01T00:00:00+00:00"})
    assert store_checks.verified(store.url).level == "warning", "damaged"
    old = {name: value for name, value in last.items() if name not in ("checksum", "format")}
    store.write_json(LAST, {**old, "at": "2020-01-01T00:00:00+00:00"})
    found = store_checks.verified(store.url)
    assert found.level == "warning" and "d ago" in found.said and "forgeline verify --all" in found.mend


def test_every_object_of_a_store_is_looked_at(store: FileStore) -> None:
    """A bit of each in turn: what is damaged is named, and nothing else."""
    tops = ("artifacts", "files", "trash", "checkpoints", "refs", "journals")
    paths = [path for top in tops for path in store.walk(top)]
    assert len(paths) == 20
    trashed = {path.split("/")[2] for path in paths if path.startswith("trash/")}
    for path in paths:
        whole = store.read_bytes(path)
        flip(store, path)
        damaged = verify_store(store).damaged
        store.write_bytes(path, whole)
        if path.startswith("artifacts/") and path.split("/")[2] in trashed:
            assert damaged == [], "the files of what is in the trash are needed by nobody"
        elif path.startswith("files/"):
            assert {damage.path.split("/")[1] for damage in damaged} == {"dataset", "rows"}, "all that share it"
        else:
            place = path.removesuffix("/manifest.json")
            assert [one for one in damaged if place.startswith(one.path.removesuffix("/manifest.json"))], path
            assert len(damaged) == 1, damaged
        assert all(damage.mend for damage in damaged)
    assert verify_store(store).damaged == []


def test_one_ref_is_verified_and_its_artifact_set_aside_if_asked(
    store: FileStore, hand: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(store, capsys, "p/m/latest")[0] == 0
    entry = refs.get(store, "p/m/latest")
    assert entry is not None
    manifest = store.manifest(entry.kind, entry.key)
    assert manifest is not None
    flip(store, f"{manifest.ref.prefix}/{manifest.attempt}/payload/file.txt")
    code, said = verify(store, capsys, "p/m/latest")
    (damage,) = said["damaged"]
    assert code == 3 and damage["what"] == "payload/file.txt: sha256 differs" and said["set_aside"] == {}
    assert damage["mend"].endswith("--set-aside, then run pipeline p again: stage m makes it again.")
    assert store.manifest(entry.kind, entry.key) == manifest and not store.exists(LAST)
    assert verify(store, capsys, f"{entry.kind}/{entry.key[:9]}")[1]["damaged"] == [damage]
    code, said = verify(store, capsys, "p/m/latest", "--set-aside")
    assert code == 3 and list(said["set_aside"].values()) == [
        f"set aside in quarantine/{entry.kind}/{entry.key}/{manifest.attempt}-1/manifest.json"
    ]
    code, said = verify(store, capsys, "p/m/latest")
    assert code == 3 and "is not in the store" in said["damaged"][0]["what"]
    assert cli.main(["verify", "--store", store.url]) == cli.main(["verify", "x", "--all", "--store", store.url]) == 2


def test_refs_that_lie_and_files_that_went_are_named(
    store: FileStore, hand: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = refs.get(store, "p/m/latest")
    assert entry is not None
    refs.advance(store, "p/production", replace(entry.artifact, digest="0" * 64))
    refs.advance(store, "p/gone", replace(entry.artifact, key="0" * 64))
    store.delete(next(path for path in store.walk("artifacts") if path.endswith("records/sources.json")))
    code, said = verify(store, capsys, "--all")
    found = {damage["path"].split("/")[-1]: damage for damage in said["damaged"]}
    assert code == 3 and len(found) == 3
    assert "which is not in the store" in found["gone"]["what"] and "rollback" in found["gone"]["mend"]
    assert "names other content" in found["production"]["what"] and "--force" in found["production"]["mend"]
    (records,) = (damage for damage in said["damaged"] if damage["path"].startswith("artifacts"))
    assert "sources.json: missing (what it made is in order, the evidence beside it is not)" in records["what"]
    finding = store_checks.verified(store.url)
    assert finding.level == "warning" and "3 objects were damaged" in finding.said


def test_gc_verifies_what_it_keeps_before_it_removes_anything(
    store: FileStore, hand: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    hand.commit(store, "unneeded")
    hand.age(store, 9)
    command = ["gc", "--delete", "--verify", "--keep-history", "1", "--store", store.url]
    entry = refs.get(store, "p/m/latest")
    manifest = entry and store.manifest(entry.kind, entry.key)
    assert manifest is not None
    path = f"{manifest.ref.prefix}/{manifest.attempt}/payload/file.txt"
    flip(store, path)
    before = list(store.walk("artifacts"))
    assert cli.main(command) == 3
    out = capsys.readouterr().out
    assert "payload/file.txt: sha256 differs" in out and "nothing was removed" in out
    assert list(store.walk("artifacts")) == before
    flip(store, path)
    assert cli.main([*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["done"] and said["verified"]["artifacts"] == 3 and said["verified"]["damaged"] == []
    assert len(list(store.walk("artifacts"))) < len(before)
