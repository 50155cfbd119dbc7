"""Names of refs, and what a stale listing or a damaged entry does to them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from infra import refs
from infra.artifacts import ArtifactRef
from infra.errors import UsageError
from infra.open_store import open_store
from infra.store_file import FileStore

REF = ArtifactRef("k", "1", "d", "model")


class LateListing(FileStore):
    """A store whose listings lag behind its objects, as an eventually consistent one's may."""

    def list(self, prefix: str) -> list[str]:
        return super().list(prefix)[:1]


@pytest.mark.parametrize("name", ["a/latest", "production", "2026-11-02", "_x/a.b-c", "a/b/c/d"])
def test_names_people_use(tmp_path: Path, name: str) -> None:
    store = open_store(str(tmp_path))
    refs.advance(store, name, REF)
    assert refs.names(store) == [name]


@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "a//b", "../x", "a/../b", ".hidden", "a b", "a/000001.json", "ü", "x" * 101]
)
def test_names_that_cannot_be_refs(tmp_path: Path, name: str) -> None:
    store = open_store(str(tmp_path))
    for use in (lambda: refs.get(store, name), lambda: refs.advance(store, name, REF)):
        with pytest.raises(UsageError, match="cannot be the name"):
            use()


def test_a_ref_inside_another_refs_folder_is_its_own(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    refs.advance(store, "a", REF)
    refs.advance(store, "a/b", ArtifactRef("k", "2", "d", "model"))
    assert refs.get(store, "a").key == "1" and refs.get(store, "a/b").key == "2"
    assert refs.names(store) == ["a", "a/b"]


def test_a_listing_that_lags_behind_misleads_nobody(tmp_path: Path) -> None:
    store = LateListing(tmp_path)
    for number in range(1, 5):
        refs.advance(store, "r", ArtifactRef("k", str(number), "d", "model"))
    assert refs.get(store, "r").number == 4 and len(refs.history(store, "r")) == 4


def test_an_entry_says_who_when_and_why(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    entry = refs.set(store, "r", REF, expected=0, note="gate passed", by="run-1")
    assert (entry.note, entry.by, entry.number, entry.artifact) == ("gate passed", "run-1", 1, REF)
    assert entry.at.endswith("+00:00") and refs.get(store, "r") == entry
    assert refs.set(store, "r", REF, expected=1, force=True).number == 2


DAMAGE = [b"", b"null", b"[]", b'{"name": "r"}', b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000, b'{"number": 1e999}']


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_named_with_what_to_do(tmp_path: Path, damage: bytes) -> None:
    store = open_store(str(tmp_path))
    refs.advance(store, "r", REF)
    refs.advance(store, "r", ArtifactRef("k", "2", "d", "model"))
    store.write_bytes("refs/r/000002.json", damage)
    for read in (refs.get, refs.history):
        with pytest.raises(
            refs.DamagedRef, match=r"entry 2 is damaged(.|\n)*1 \(k 1\)(.|\n)*forgeline rollback r"
        ) as caught:
            read(store, "r")
        assert "refs/r" in str(caught.value)
    assert [entry.number for entry in refs.past(store, "r").entries] == [1]
    with pytest.raises(refs.RefConflict, match="entry 2"):
        refs.set(store, "r", REF, expected=1)
    assert refs.set(store, "r", REF, expected=2).number == 3, "a person points it again"
    assert [entry.number for entry in refs.history(store, "r")] == [3, 1], "the gap shows"


def test_every_flipped_bit_of_an_entry_is_found(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    entry = refs.advance(store, "r", ArtifactRef("pretrain", "a" * 64, "b" * 64, "model"), note="x")
    data = store.read_bytes("refs/r/000001.json")
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            store.write_bytes("refs/r/000001.json", bytes(flipped))
            try:
                assert refs.get(store, "r") == entry, "only white space may differ"
            except refs.DamagedRef:
                continue


def test_an_entry_of_an_older_version_has_no_checksum(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    entry = refs.advance(store, "r", REF, note="x")
    store.write_json("refs/r/000001.json", asdict(entry))
    assert refs.get(store, "r") == entry


def test_a_damaged_latest_is_written_again(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    refs.advance(store, "p/s/latest", REF)
    store.write_bytes("refs/p/s/latest/000001.json", b"")
    with pytest.raises(refs.DamagedRef, match="Run its pipeline again"):
        refs.get(store, "p/s/latest")
    refs.advance(store, "p/s/latest", REF)
    assert refs.get(store, "p/s/latest").number == 2
