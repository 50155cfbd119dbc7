"""Nothing is moved or deleted on one reading: a store whose answers are wrong for a while costs no good artifact."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypedDict

import pytest

from flows.repair import plan_around_damage
from infra import journal, refs
from infra.census import take
from infra.checkpoints import CheckpointStore
from infra.collector import collect, restore
from infra.errors import CorruptArtifact, InputChanged, StoreUnreachable, WrongReference
from infra.store import Store
from infra.store_file import FileStore
from infra.stored_json import StoredJson
from tasks.data.parts.parts import existing
from tasks.plan.resolved import read_ref
from tasks.run.worker import _fetch
from tasks.stage import PartKind, PartSpec

PAGE = b"<html>We are back in a minute.</html>"


class Lying(FileStore):
    """Answers so many readings of some paths with a maintenance page, or "not there"; what it holds is in order."""

    doubts = (0.0, 0.0, 0.0)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.about, self.times, self.absent, self.page = "", 0, False, PAGE

    def lie(self, about: str, times: int, *, absent: bool = False) -> None:
        self.about, self.times, self.absent = about, times, absent

    def _lies(self, path: str) -> bool:
        if self.times and self.about in path:
            self.times -= 1
            return True
        return False

    def read_bytes(self, path: str) -> bytes:
        if not self._lies(path):
            return super().read_bytes(path)
        if self.absent:
            raise FileNotFoundError(path)
        return self.page

    def exists(self, path: str) -> bool:
        return not (self.absent and self._lies(path)) and super().exists(path)


@pytest.fixture
def store(tmp_path: Path) -> Lying:
    return Lying(tmp_path / "store")


@pytest.fixture(name="hand", scope="session")
def hand_fixture(load: Any) -> Any:
    return load("unit/committed.py")


def flip(store: Store, path: str, at: int = -2) -> None:
    data = bytearray(store.read_bytes(path))
    data[at] ^= 1
    store.write_bytes(path, bytes(data))


def everything(store: Store) -> dict[str, bytes]:
    folders = ("artifacts", "files", "refs", "checkpoints", "quarantine", "trash", "journals")
    return {path: FileStore.read_bytes(store, path) for folder in folders for path in store.walk(folder)}


@pytest.mark.parametrize("times", [1, 4])
def test_a_page_instead_of_a_manifest_moves_nothing(store: Lying, hand: Any, times: int) -> None:
    made = hand.commit(store, "m")
    before = everything(store)
    store.lie("manifest.json", times)
    with pytest.raises(CorruptArtifact):
        store.manifest(made.kind, made.key)
    assert store.quarantine(made.kind, made.key) is None
    assert everything(store) == before and hand.stands(store, made)


def test_a_page_that_stays_moves_nothing_either(store: Lying, hand: Any) -> None:
    made = hand.commit(store, "m")
    before = everything(store)
    store.lie("manifest.json", 10**6)
    with pytest.raises(StoreUnreachable, match="other bytes than it holds; nothing was moved"):
        store.quarantine(made.kind, made.key)
    assert everything(store) == before


def test_a_page_as_long_as_the_manifest_is_told_from_it_by_the_copy(store: Lying, hand: Any) -> None:
    made = hand.commit(store, "m")
    before = everything(store)
    store.page = b"<" * len(before[f"{made.ref.prefix}/manifest.json"])
    store.lie(made.ref.prefix, 10**6)
    with pytest.raises(StoreUnreachable):
        store.quarantine(made.kind, made.key)
    assert everything(store) == before


def test_what_is_damaged_for_certain_is_set_aside_with_its_bytes(store: Lying, hand: Any) -> None:
    made = hand.commit(store, "m")
    path = f"{made.ref.prefix}/{made.attempt}/payload/file.txt"
    flip(store, path)
    manifest = store.read_bytes(f"{made.ref.prefix}/manifest.json")
    moved = store.quarantine(made.kind, made.key, made.attempt)
    assert moved == f"quarantine/dataset/{made.key}/{made.attempt}-1/manifest.json"
    assert store.read_bytes(moved) == manifest and store.manifest(made.kind, made.key) is None


def test_who_asks_for_a_sound_artifact_to_be_set_aside_is_refused(store: Lying, hand: Any) -> None:
    made = hand.commit(store, "m", shared={"rows": "r" * 50}, content="x", sources={"a": "0" * 64})
    before = everything(store)
    assert store.quarantine(made.kind, made.key) is None and everything(store) == before


@pytest.mark.parametrize("damage", [b"", b"[]", PAGE, None])
def test_a_damaged_manifest_is_written_again_from_its_copy(store: Lying, hand: Any, damage: bytes | None) -> None:
    """What took days to train is not trained again for a bit in its metrics."""
    made = hand.commit(store, "m", sources={"a": "0" * 64})
    path = f"{made.ref.prefix}/manifest.json"
    whole = store.read_bytes(path)
    store.write_bytes(path, whole.replace(b'"run": 2.0', b'"run": 3.0') if damage is None else damage)
    moved = store.quarantine(made.kind, made.key)
    assert moved is not None and store.read_bytes(moved) != whole
    assert store.manifest(made.kind, made.key) == made and store.read_bytes(path) == whole and hand.stands(store, made)


def test_a_copy_of_what_was_never_committed_or_does_not_verify_is_not_used(store: Lying, hand: Any) -> None:
    made = hand.commit(store, "m")
    path, prefix = f"{made.ref.prefix}/manifest.json", made.ref.prefix
    whole = store.read_bytes(path)
    other = replace(made, attempt="other")
    store.copy(f"{prefix}/{made.attempt}/payload/file.txt", f"{prefix}/other/payload/file.txt")
    store.write_json(f"{prefix}/other/manifest.json", other.to_json())
    store.delete(f"{prefix}/{made.attempt}/manifest.json")
    store.write_bytes(path, whole[:-9])
    assert store.quarantine(made.kind, made.key) is not None and store.manifest(made.kind, made.key) is None
    store.delete_tree(f"{prefix}/other")
    store.write_bytes(f"{prefix}/{made.attempt}/manifest.json", whole)
    store.write_bytes(path, whole[:-9])
    flip(store, f"{prefix}/{made.attempt}/payload/file.txt")
    assert store.quarantine(made.kind, made.key) is not None and store.manifest(made.kind, made.key) is None


def test_a_shared_file_read_wrongly_stays_and_a_damaged_one_is_moved(store: Lying, hand: Any) -> None:
    made = hand.commit(store, "m", shared={"rows": "r" * 50})
    (entry,) = made.payload
    assert store.quarantine(made.kind, made.key) is None and store.exists(entry.shared_path)
    flip(store, entry.shared_path)
    damaged = store.read_bytes(entry.shared_path)
    assert store.quarantine(made.kind, made.key) is not None
    assert not store.exists(entry.shared_path) and store.read_bytes(f"quarantine/files/{entry.sha256}/1") == damaged


def test_the_plan_of_a_run_outlives_a_page(store: Lying, load: Any, tmp_path: Path) -> None:
    house = load("unit/house.py").House(tmp_path)
    house.run()
    house.store = store
    before = everything(store)
    store.lie("artifacts/pretrain", 3)
    plan = plan_around_damage(house.pipeline(), store)
    assert {line.action for line in plan} == {"reuse", "skip"} and everything(store) == before


def test_a_checkpoint_read_wrongly_is_resumed_from(store: Lying, tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "w").write_text("weights")
    points = CheckpointStore(store, "k", "1")
    for step in (1, 2):
        points.commit(step, {"w": tmp_path / "w"}, {"step": step})
    before = everything(store)
    store.lie("step-000000002/manifest.json", 3)
    newest = points.latest()
    assert newest is not None and newest.step == 2 and everything(store) == before and not caplog.text
    (file,) = [path for path in store.walk("checkpoints/k/1/step-000000002") if path.endswith("/w")]
    flip(store, file)
    newest = points.latest()
    assert newest is not None and newest.step == 1 and "step 2 is damaged (files/w: sha256 differs" in caplog.text


def test_a_checkpoint_that_a_server_does_not_see_once_is_not_pruned(store: Lying, tmp_path: Path) -> None:
    (tmp_path / "w").write_text("weights")
    points = CheckpointStore(store, "k", "1")
    for step in (1, 2, 3):
        points.commit(step, {"w": tmp_path / "w"}, {"step": step})
    store.lie("step-000000002/manifest.json", 1, absent=True)
    points.prune(keep=3)
    assert points.steps() == [1, 2, 3] and points.load(2).state == {"step": 2}


def test_collecting_beside_wrong_answers_takes_nothing_that_is_needed(store: Lying, hand: Any) -> None:
    data = hand.commit(store, "data", shared={"rows": "r"})
    model = hand.commit(store, "m", {"data": data})
    refs.advance(store, "p/production", model.ref)
    hand.age(store, 30)
    before = everything(store)
    for absent in (True, False):
        store.lie(f"{model.ref.prefix}/manifest.json", 1, absent=absent)
        census = take(store, hand.NOW)
        assert ("dataset", model.key) in census.unreadable
    store.lie("", 0)
    collect(store, hand.NOW)
    assert everything(store) == before


@pytest.mark.parametrize("absent", [True, False])
def test_what_lies_in_the_trash_and_is_needed_again_outlives_a_wrong_answer(
    store: Lying, hand: Any, absent: bool
) -> None:
    made = hand.commit(store, "m", shared={"rows": "r"}, content="own")
    hand.age(store, 1)
    collect(store, hand.NOW)
    (note,) = store.walk("trash")
    refs.advance(store, "p/production", made.ref)
    hand.age(store, 30)
    for times in (1, 2, 3):
        store.lie(note, times, absent=absent)
        collect(store, hand.NOW)
    store.lie("", 0)
    collect(store, hand.NOW)
    assert hand.stands(store, made)


def test_what_comes_out_of_the_trash_is_a_manifest(store: Lying, hand: Any) -> None:
    made = hand.commit(store, "m")
    hand.age(store, 1)
    collect(store, hand.NOW)
    (note,) = store.walk("trash")
    store.lie(note, 1)
    with pytest.raises(Exception, match="JSON"):
        restore(store, made.kind, made.key)
    assert restore(store, made.kind, made.key) == made and hand.stands(store, made)


def test_a_part_whose_file_is_not_seen_once_stays(store: Lying, hand: Any) -> None:
    kind, spec = PartKind("rows", "nowhere:nothing"), PartSpec({"of": 1}, {})
    made = hand.commit(store, "x", kind="rows", shared={"rows": "r"}, identity={"part": "rows", "of": 1}, producer={})
    assert made.key == spec.key(kind)
    store.lie("files/", 1, absent=True)
    assert existing(kind, [spec], store) == [made] and not list(store.walk("quarantine"))


class Said(TypedDict):
    reason: str


SAID = StoredJson("what was said", Said, "Say it again.")


def test_a_damaged_entry_of_a_journal_is_set_aside_and_decided_again(store: Lying, caplog: Any) -> None:
    for number in range(2):
        assert journal.append(store, "p/watch", number, {"reason": f"entry {number + 1}"}, SAID)
    store.lie("journals/", 3)
    assert journal.newest(store, "p/watch", SAID) == (2, {"reason": "entry 2"}) and not list(store.walk("quarantine"))
    path = "journals/p/watch/000002.json"
    data = store.read_bytes(path)
    store.write_bytes(path, data.replace(b"entry 2", b"entry 3"))
    assert journal.newest(store, "p/watch", SAID) == (1, {"reason": "entry 1"})
    assert (
        "entry 2 of the journal p/watch: what was said is damaged: it is not what was written: its checksum"
        in caplog.text
    )
    assert journal.append(store, "p/watch", 1, {"reason": "again"}, SAID)
    store.write_bytes("journals/old/000001.json", b'{"reason": "from before checksums"}')
    assert journal.newest(store, "old", SAID) == (1, {"reason": "from before checksums"})


# --- references -------------------------------------------------------------------------------------------------------


def test_a_reference_to_other_content_is_named_and_the_artifact_stays(store: Lying, hand: Any) -> None:
    made = hand.commit(store, "m")
    wrong = replace(made.ref, digest="0" * 64)
    refs.advance(store, "p/production", wrong)
    before = everything(store)
    with pytest.raises(WrongReference, match=r"entry 1 names other content \(000000000000\)") as caught:
        read_ref(store, "p/production")
    assert caught.value.where == "refs/p/production" and "promote p/production dataset/" in str(caught.value.hint)
    refs.advance(store, "p/m/latest", wrong)
    assert read_ref(store, "p/m/latest") == made.ref, "latest is what stands there"
    assert store.quarantine(made.kind, made.key) is None
    assert everything(store).items() >= before.items() and hand.stands(store, made)


def test_a_run_whose_input_another_run_made_again_is_planned_again(store: Lying, hand: Any, load: Any) -> None:
    """Run A resolved the first bytes; B found them damaged and made others under the same key."""
    first = hand.commit(store, "m", identity={"of": "m"}, content="first")
    flip(store, f"{first.ref.prefix}/{first.attempt}/payload/file.txt")
    assert store.quarantine(first.kind, first.key, first.attempt) is not None
    again = hand.commit(store, "m'", identity={"of": "m"}, content="second")
    named = {"data": [{**asdict(first.ref), "stage": "m", "split": None}]}
    with pytest.raises(InputChanged, match="holds other content") as caught:
        _fetch(store, named, lazy=False)
    assert not isinstance(caught.value, CorruptArtifact)
    assert store.quarantine(first.kind, first.key, first.attempt) is None, "another attempt stands"
    assert store.manifest(again.kind, again.key) == again
    store.delete(f"{again.ref.prefix}/manifest.json")
    with pytest.raises(InputChanged, match="no longer in the store"):
        _fetch(store, named, lazy=False)
