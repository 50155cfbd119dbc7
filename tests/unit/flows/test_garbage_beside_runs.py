"""Garbage collection beside what does not wait for it: runs that go on, and its own death."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.live import LiveView
from flows.run import _settled
from infra import refs
from infra.artifacts import Manifest
from infra.census import Keep
from infra.collector import collect
from infra.errors import StoreError
from infra.store_file import FileStore
from tasks.pipeline.load import load_pipeline
from tasks.plan.plan import make_plan
from tasks.run.record import RunRecord


@pytest.fixture(name="hand", scope="session")
def hand_fixture(load: Any) -> Any:
    """Artifacts committed by hand, and small runs (`committed.py`)."""
    return load("unit/committed.py")


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


def test_killed_at_any_point_another_round_finishes(tmp_path: Path, hand: Any) -> None:
    for death in range(200):
        store = Mortal(tmp_path / str(death))
        data = hand.commit(store, "data", shared={"x": "both"}, content="c")
        model = hand.commit(store, "m", {"data": data})
        lost = hand.commit(store, "lost", {"data": data}, shared={"x": "both", "z": "theirs"}, sources={"a": "0" * 64})
        gone = hand.commit(store, "gone", {"lost": lost})
        refs.advance(store, "r", model.ref)
        hand.age(store, 1)
        collect(store, hand.NOW)
        refs.advance(store, "back", lost.ref)
        refs.advance(store, "back", model.ref)
        hand.age(store, 1)
        store.left, died = death, False
        try:
            collect(store, Keep(grace=0, runs=0, history=2 if death % 2 else 1))
        except Killed:
            died = True
        store.left = 10**9
        for manifest in (data, model, lost, gone):
            if store.manifest(manifest.kind, manifest.key) is not None:
                assert hand.stands(store, manifest), "torn"
        assert hand.stands(store, data) and hand.stands(store, model)
        hand.until_clean(store)
        assert not store.list("trash") and len(list(store.walk("files"))) == 1
        assert {path.split("/")[2] for path in store.walk("artifacts")} == {data.key, model.key}
        if not died:
            assert death > 5
            return
    raise AssertionError("it never came to its end")


PIPELINE = """
name: p
stages:
  all: {dataset: {sources: [{files: "data/*.txt", format: text}]}}
  some: {dataset: {sources: [{stage: all}], split: {validation: SHARE, test: 0.1}}}
"""


def write_data(folder: Path) -> None:
    (folder / "data").mkdir()
    for i in range(40):
        (folder / "data" / f"{i}.txt").write_text(f"The harbour has {i} things of kind {i * i}, it is said.\n")


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


def test_what_is_collected_while_a_run_decides_to_reuse_it_is_made_again(tmp_path: Path, hand: Any) -> None:
    write_data(tmp_path)
    file = tmp_path / "pipeline.yaml"
    file.write_text("".join(PIPELINE.splitlines(keepends=True)[:4]))
    store = Between(tmp_path / "store")
    first = hand.run(file, store, tmp_path / "run-1")["all"]
    store.delete_tree("refs")

    def gone() -> None:
        hand.until_clean(FileStore(store.root))
        assert store.root.joinpath("artifacts").exists() is False

    store.then = [gone]
    again = hand.run(file, store, tmp_path / "run-2")["all"]
    assert not store.then and again.attempt != first.attempt and again.digest == first.digest
    assert hand.stands(store, again) and refs.get(store, "p/all/latest").artifact == again.ref

    plan = make_plan(load_pipeline(file, [], store.url), store)
    record = RunRecord("r", load_pipeline(file, [], store.url), store)
    with LiveView([("all", "dataset")], quiet=True) as live:
        assert _settled(plan, record, store, live)
        store.delete(f"{again.ref.prefix}/manifest.json")
        assert not _settled(plan, record, store, live), "then the flow runs after all"
    assert record.data["stages"][0]["artifact"] is None


def test_a_collection_that_never_rests_breaks_no_run(tmp_path: Path, hand: Any) -> None:
    """Runs go back and forth between two settings, so each reuses what the last one left to the collection."""
    store = FileStore(tmp_path / "store")
    write_data(tmp_path)
    file = tmp_path / "pipeline.yaml"
    ended, rounds, failures = threading.Event(), [0], list[BaseException]()

    def collect_on() -> None:
        while not ended.is_set():
            try:
                collect(store, hand.NOW)
            except StoreError as error:
                failures.append(error)
            rounds[0] += 1

    thread = threading.Thread(target=collect_on)
    thread.start()
    digests: dict[str, set[str]] = {}
    try:
        for number, share in enumerate(("0.1", "0.3", "0.1", "0.3", "0.1")):
            file.write_text(PIPELINE.replace("SHARE", share))
            made = hand.run(file, store, tmp_path / f"run-{number}", f"r{number}")
            for manifest in made.values():
                # A collection that looked before the run named it moves it, looks again, and puts it back.
                begun = rounds[0]
                while not hand.stands(store, manifest):
                    assert rounds[0] <= begun + 2, "what a run ends with is there"
                    time.sleep(0.01)
                digests.setdefault(manifest.key, set()).add(manifest.digest)
    finally:
        ended.set()
        thread.join()
    assert not failures and rounds[0] > 5
    assert len(digests) == 3 and all(len(of) == 1 for of in digests.values())
