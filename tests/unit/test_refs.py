"""Names of refs, and what a stale listing or a damaged entry does to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra import refs
from infra.artifacts import ArtifactRef
from infra.errors import StoreError, UsageError
from infra.store import Store
from infra.store_file import FileStore

REF = ArtifactRef("k", "1", "d", "model")


class LateListing(FileStore):
    """A store whose listings lag behind its objects, as an eventually consistent one's may."""

    def list(self, prefix: str) -> list[str]:
        return super().list(prefix)[:1]


@pytest.mark.parametrize("name", ["a/latest", "production", "2026-11-02", "_x/a.b-c", "a/b/c/d"])
def test_names_people_use(tmp_path: Path, name: str) -> None:
    store = Store.open(str(tmp_path))
    refs.advance(store, name, REF)
    assert refs.names(store) == [name]


@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "a//b", "../x", "a/../b", ".hidden", "a b", "a/000001.json", "ü", "x" * 101]
)
def test_names_that_cannot_be_refs(tmp_path: Path, name: str) -> None:
    store = Store.open(str(tmp_path))
    for use in (lambda: refs.get(store, name), lambda: refs.advance(store, name, REF)):
        with pytest.raises(UsageError, match="cannot be the name"):
            use()


def test_a_ref_inside_another_refs_folder_is_its_own(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
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
    store = Store.open(str(tmp_path))
    entry = refs.set(store, "r", REF, expected=0, note="gate passed", by="run-1")
    assert (entry.note, entry.by, entry.number, entry.artifact) == ("gate passed", "run-1", 1, REF)
    assert entry.at.endswith("+00:00") and refs.get(store, "r") == entry
    assert refs.set(store, "r", REF, expected=1, force=True).number == 2


def test_a_damaged_entry_is_named(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    store.write_bytes("refs/r/000001.json", b'{"name": "r"}')
    with pytest.raises(StoreError, match="not a ref entry") as caught:
        refs.get(store, "r")
    assert "refs/r/000001.json" in str(caught.value)
