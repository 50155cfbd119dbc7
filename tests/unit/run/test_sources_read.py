"""A file that changes after a stage's key was made: what is committed under a key is what the key says."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra import claims
from infra.errors import SourcesChanged, StageError
from infra.launch.local import LocalLauncher
from infra.launch.slots import Slots
from infra.open_store import open_store
from infra.sources_read import SourceFile, compare, snapshot
from infra.wandb_replay import WandbReplay
from tasks.data.tokens.tokenizing import save_tokenizer, train_bpe
from tasks.pipeline.dag import Pipeline
from tasks.pipeline.load import load_pipeline
from tasks.plan.resolved import resolve
from tasks.run.context import RunContext
from tasks.run.execute import LOOKS, execute_stage
from tasks.stage import stages

PIPELINE = """
name: race
stages:
  rows:
    dataset:
      sources: [{files: "data/*.jsonl", format: jsonl}]
      split: {by: row, validation: 0, test: 0}
  words: {tokenizer: {given: words}}
"""


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalLauncher]:
    launcher = LocalLauncher(tmp_path_factory.mktemp("launcher"))
    yield launcher
    launcher.close()


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.jsonl").write_text("".join(f'{{"text": "row {i} of the data"}}\n' for i in range(3)))
    (tmp_path / "words").mkdir()
    save_tokenizer(train_bpe(["some words of the data"], 260), tmp_path / "words")
    (tmp_path / "p.yaml").write_text(PIPELINE)
    return load_pipeline(tmp_path / "p.yaml", store=str(tmp_path / "store"))


@pytest.fixture
def context(pipeline: Pipeline, launcher: LocalLauncher, tmp_path: Path) -> RunContext:
    return RunContext(
        run="one",
        pipeline="race",
        store=open_store(pipeline.store),
        launcher=launcher,
        slots=Slots(2),
        folder=tmp_path / "run",
        producer={},
        notify=lambda *args, **news: None,
        tracking=WandbReplay(pipeline.tracking, project="p", group="one", folder=tmp_path),
    )


def when_queued(context: RunContext, change: Callable[[], object], times: int = 1) -> RunContext:
    """The context of a run in which `change` happens while a stage waits for its slot, the first times it does."""
    left = [change] * times

    def notify(stage: str, **news: Any) -> None:
        if news.get("state") == "queued" and left:
            left.pop()()

    return replace(context, notify=notify)


def append(path: Path) -> None:
    with path.open("a") as stream:
        stream.write(f'{{"text": "appended at {stream.tell()}"}}\n')


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        (lambda data: append(data / "a.jsonl"), 4),
        (lambda data: append(data / "new.jsonl"), 4),
        (lambda data: (data / "b.jsonl").unlink(), 3),
    ],
    ids=["changed", "new", "gone"],
)
def test_what_changed_in_the_queue_is_committed_under_a_key_of_its_own(
    pipeline: Pipeline, context: RunContext, tmp_path: Path, change: Callable[[Path], object], rows: int
) -> None:
    data, node = tmp_path / "data", pipeline.stages["rows"]
    if rows == 3:
        append(data / "b.jsonl")
    before = resolve(node, {})
    manifest = execute_stage(node, {}, when_queued(context, lambda: change(data))).manifest
    assert manifest.metrics["rows"] == rows
    assert manifest.key == resolve(node, {}).key != before.key
    assert context.store.manifest("dataset", before.key) is None


def test_a_given_tokenizer_that_changed_in_the_queue(pipeline: Pipeline, context: RunContext, tmp_path: Path) -> None:
    node, file = pipeline.stages["words"], tmp_path / "words/tokenizer_config.json"
    before = resolve(node, {})
    manifest = execute_stage(node, {}, when_queued(context, lambda: file.write_text(file.read_text() + "\n"))).manifest
    assert manifest.key == resolve(node, {}).key != before.key
    assert (context.store.fetch(manifest) / file.name).read_bytes() == file.read_bytes()
    assert context.store.manifest("tokenizer", before.key) is None


def test_a_file_that_never_stands_still_is_named(pipeline: Pipeline, context: RunContext, tmp_path: Path) -> None:
    node = pipeline.stages["rows"]
    with pytest.raises(SourcesChanged, match=r"stage rows: sources: a\.jsonl changed since .* key was made") as caught:
        execute_stage(node, {}, when_queued(context, lambda: append(tmp_path / "data/a.jsonl"), LOOKS))
    assert caught.value.transient and "renaming avoids this" in str(caught.value)
    assert not context.store.list("artifacts/dataset")
    assert execute_stage(node, {}, context).manifest.metrics["rows"] == 3 + LOOKS


def test_what_is_written_all_the_time_needs_no_luck_in_the_queue(
    pipeline: Pipeline, context: RunContext, tmp_path: Path
) -> None:
    """It changes whenever somebody waits for slots, but the key made the second time is made with the slots in hand."""
    node, slots = pipeline.stages["rows"], context.slots

    class Busy(Slots):
        @contextmanager
        def hold(self, count: int, cancelled: threading.Event) -> Iterator[None]:
            with slots.hold(count, cancelled):
                append(tmp_path / "data/a.jsonl")
                yield

    manifest = execute_stage(node, {}, replace(context, slots=Busy(2))).manifest
    assert manifest.metrics["rows"] == 5 and manifest.key == resolve(node, {}).key
    assert len(context.store.list("artifacts/dataset")) == 1


def test_the_slots_are_not_held_while_another_holder_is_waited_for(
    pipeline: Pipeline, context: RunContext, tmp_path: Path
) -> None:
    node, data = pipeline.stages["rows"], tmp_path / "data/a.jsonl"
    held: list[claims.Claim] = []

    def another_run_takes_the_new_key() -> None:
        append(data)
        claim = claims.try_acquire(context.store, "dataset", resolve(node, {}).key)
        assert claim is not None
        held.append(claim)

    def notify(stage: str, **news: Any) -> None:
        if news.get("state") == "queued" and not held:
            another_run_takes_the_new_key()
        if news.get("state") == "waiting":
            with context.slots.hold(2, threading.Event()):
                held[0].release()

    assert execute_stage(node, {}, replace(context, notify=notify)).manifest.metrics["rows"] == 4


def test_a_change_is_told_by_file() -> None:
    keyed = [SourceFile(name, "1") for name in ("a", "b", "c", "d", "e")]
    compare(keyed, list(reversed(keyed)))
    with pytest.raises(SourcesChanged, match=r"^sources: f is new, a is gone, b is gone and 2 more since"):
        compare(keyed, [SourceFile("c", "2"), SourceFile("d", "2"), SourceFile("e", "1"), SourceFile("f", "1")])


def test_a_snapshot_says_what_was_copied(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"bytes")
    (copied,) = snapshot({"deep/a": tmp_path / "a"}, tmp_path / "copy")
    assert (tmp_path / "copy/deep/a").read_bytes() == b"bytes"
    assert copied == SourceFile("deep/a", "277089d91c0bdf4f2e6862ba7e4a07605119431f5d13f726dd352b06f1b206a9")
    with pytest.raises(SourcesChanged, match="gone is gone since"):
        snapshot({"gone": tmp_path / "gone"}, tmp_path / "copy")
    with pytest.raises(StageError, match=r"cannot read .*a/b: Not a directory"):
        snapshot({"b": tmp_path / "a/b"}, tmp_path / "copy")


def test_every_stage_that_reads_files_says_which_it_read() -> None:
    """The worker commits nothing without that word; a stage that lacks it is found here, not by its user."""
    reading = {kind: stage for kind, stage in stages().items() if stage.sources is not None}
    assert {"dataset", "pretrained", "tokenizer", "harness"} <= reading.keys()
    for kind, stage in reading.items():
        assert "job.has_read(" in inspect.getsource(stage.run), kind
