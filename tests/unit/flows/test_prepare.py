"""What `forgeline prepare` refuses before any worker or server is started."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from flows import cli
from flows import prepare as preparing
from flows.prepare import prepare
from infra.errors import SourcesChanged, UsageError
from infra.keys import file_digest
from tasks.data.parts.batches import Batch
from tasks.pipeline.dag import Pipeline
from tasks.pipeline.load import load_pipeline
from tasks.run.execute import LOOKS

PIPELINE = """
name: small
stages:
  corpus: {dataset: {sources: [{files: "*.txt"}]}}
  words: {tokenizer: {data: corpus, vocab_size: 300}}
  tokens: {pack: {data: corpus, tokenizer: words, context: 8}}
"""


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    monkeypatch.setenv("FORGELINE_HOME", str(tmp_path / "home"))
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "p.yaml").write_text(PIPELINE)
    return load_pipeline(tmp_path / "p.yaml", store=str(tmp_path / "store"))


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ("corpsu", "no stage 'corpsu'; did you mean corpus?.*\n.*With parts: corpus, tokens"),
        ("words", "stage words: a tokenizer is not made of parts\n.*corpus, tokens"),
        ("tokens", "stage tokens: its inputs are not made yet: corpus, words\n.*forgeline run .*p.yaml"),
    ],
)
def test_stages_without_parts_or_inputs(pipeline: Pipeline, stage: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        prepare(pipeline, stage, dask=None, workers=2, say=print)


@pytest.mark.parametrize("changes", [1, LOOKS])
def test_files_that_change_before_a_worker_reads_them_are_looked_at_again(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: int
) -> None:
    seen: list[list[str]] = []

    def make(pipeline: Pipeline, node: Any, missing: list[Batch], *given: Any) -> set[str]:
        seen.append([file["sha256"] for batch in missing for spec in batch.specs for file in spec.arguments["files"]])
        if len(seen) <= changes:
            (tmp_path / "a.txt").write_text(f"some text, changed {len(seen)} times")
            raise SourcesChanged("the file changed while it was read", where="sources: a.txt")
        return {"here:1"}

    monkeypatch.setattr(preparing, "_make", make)
    said: list[str] = []
    if changes == LOOKS:
        with pytest.raises(SourcesChanged, match=r"stage corpus: sources: a\.txt: the file changed"):
            prepare(pipeline, "corpus", dask=None, workers=2, say=said.append)
    else:
        assert prepare(pipeline, "corpus", dask=None, workers=2, say=said.append).made == 1
        assert "a.txt: the file changed while it was read; it is looked at again" in said[1]
        assert seen[1] == [file_digest(tmp_path / "a.txt")] != seen[0]
    assert len(seen) == min(changes + 1, LOOKS)


def test_without_dask_it_says_what_to_install(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prefect_dask", None)
    with pytest.raises(UsageError, match=r"pip install 'forgeline\[dask\]'"):
        prepare(pipeline, "corpus", dask=None, workers=2, say=print)


@pytest.mark.parametrize("given", [["--workers", "0"], ["--workers", "two"], ["--workers", "2", "--dask", "tcp://a:1"]])
def test_options_that_mean_nothing(given: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli._parser().parse_args(["prepare", "p.yaml", "corpus", *given])
