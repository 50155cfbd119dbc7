"""What `forgeline prepare` refuses before any worker or server is started."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from flows import cli
from flows.prepare import prepare
from infra.errors import UsageError
from tasks.pipeline import Pipeline, load_pipeline

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


def test_without_dask_it_says_what_to_install(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prefect_dask", None)
    with pytest.raises(UsageError, match=r"pip install 'forgeline\[dask\]'"):
        prepare(pipeline, "corpus", dask=None, workers=2, say=print)


@pytest.mark.parametrize("given", [["--workers", "0"], ["--workers", "two"], ["--workers", "2", "--dask", "tcp://a:1"]])
def test_options_that_mean_nothing(given: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli._parser().parse_args(["prepare", "p.yaml", "corpus", *given])
