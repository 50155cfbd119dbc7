"""Which stages begin before Prefect is there, and what their tasks get of them."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.errors import StageError
from tasks.pipeline.load import load_pipeline
from tasks.run import head_start as module
from tasks.run.head_start import HeadStart

PIPELINE = """name: p
store: store
stages:
  rows: {dataset: {sources: [{files: a.txt}]}}
  others: {dataset: {sources: [{files: b.txt}]}}
  words: {tokenizer: {data: rows, vocab_size: 300}}
  tokens: {pack: {data: rows, tokenizer: words, context: 8}}
"""


class World:
    """Stages that end as the test says: `fails` raise, those in `held` wait until they are released."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "p.yaml").write_text(PIPELINE)
        self.begun, self.ended, self.fails = list[str](), list[str](), set[str]()
        self.held = dict[str, threading.Event]()
        self.made: dict[str, Any] = {}
        self.context: Any = SimpleNamespace(refused=set[str](), stopping=threading.Event())
        nodes = list(load_pipeline(folder / "p.yaml").stages.values())
        self.start = HeadStart(nodes, self.made, self.context, lambda name, result: self.ended.append(name))
        monkeypatch.setattr(module, "execute_stage", self.execute)

    def execute(self, node: Any, made: Any, context: Any) -> Any:
        assert set(node.needs) <= set(made)
        self.begun.append(node.name)
        if node.name in self.held:
            assert self.held[node.name].wait(10)
        if node.name in self.fails:
            raise StageError("no", where="here")
        return SimpleNamespace(manifest=SimpleNamespace(ref=node.name), refused=False)

    def result(self, name: str) -> Any:
        begun = self.start.take(name)
        assert begun is not None
        return begun.result.result(10)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_what_becomes_ready_follows_until_prefect_is_there(world: World) -> None:
    world.held["words"] = threading.Event()
    world.start.begin()
    assert world.result("rows").manifest.ref == "rows"
    world.start.hand_over()
    world.held["words"].set()
    world.start.close()
    assert sorted(world.begun) == sorted(world.ended) == ["others", "rows", "words"]
    assert world.start.take("tokens") is None, "its task begins it"


def test_a_failure_is_its_tasks_first_attempt_and_nothing_follows_it(world: World) -> None:
    world.fails.add("rows")
    world.start.begin()
    world.start.close()
    with pytest.raises(StageError, match="no"):
        world.result("rows")
    assert world.start.take("rows") is None, "the second attempt is a new one"
    assert sorted(world.begun) == ["others", "rows"]


def test_a_run_that_stops_begins_nothing(world: World) -> None:
    world.context.stopping.set()
    world.start.begin()
    world.start.close()
    assert not world.begun
