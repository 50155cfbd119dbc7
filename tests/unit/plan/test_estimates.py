"""How long a plan will take: what the same stages took, scaled to the steps there are to make, along the longest way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows import cli
from infra import refs
from infra.keys import digest
from infra.open_store import open_store
from tasks.pipeline.dag import Pipeline
from tasks.pipeline.load import load_pipeline
from tasks.plan.estimates import LAST_RUNS, Estimate, estimate, estimate_plan
from tasks.plan.plan import make_plan

PIPELINE = """\
name: demo
stages:
  corpus:
    dataset: {sources: [{files: "texts/*.txt", format: text}]}
  words:
    tokenizer: {data: corpus, vocab_size: 300}
  tokens:
    pack: {data: corpus, tokenizer: words, context: 16}
  base:
    pretrain:
      data: tokens
      objective: causal_lm
      model: {type: llama, hidden_size: 16}
      max_steps: 200
      global_batch_size: 8
"""


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/one.txt").write_text("one text\n\nanother text\n")
    (tmp_path / "p.yaml").write_text(PIPELINE)
    return load_pipeline(tmp_path / "p.yaml", [], str(tmp_path / "store"))


@pytest.fixture
def made(pipeline: Pipeline, tmp_path: Path) -> Any:
    """Leaves an artifact of a stage as an earlier run would have."""
    store, count = open_store(pipeline.store), iter(range(1000))

    def make(stage: str, run: float, *, fetch: float = 0.0, steps: float = 0.0, resumed_at: float = 0.0) -> None:
        node, number = pipeline.stages[stage], next(count)
        (tmp_path / "payload").mkdir(exist_ok=True)
        (tmp_path / "payload/file").write_text(str(number))
        manifest = store.commit(
            kind=node.stage.kind,
            type=node.stage.makes,
            key=digest({"number": number}),
            attempt="one",
            payload_dir=tmp_path / "payload",
            identity={"kind": node.stage.kind, "version": 0, "params": {}, "inputs": [], "sources": None},
            metrics={"steps": steps} if steps else {},
            timings={"fetch": fetch, "run": run, **({"resumed_at": resumed_at} if resumed_at else {})},
        )
        refs.advance(store, f"demo/{stage}/latest", manifest.ref)

    return make


def test_a_stage_takes_what_it_took(pipeline: Pipeline, made: Any) -> None:
    store, node = open_store(pipeline.store), pipeline.stages["words"]
    assert estimate(store, "demo", node) is None
    for seconds in (900.0, *[2.0, 8.0, 3.0, 4.0, 1.0][-LAST_RUNS:]):
        made("words", seconds, fetch=1.0)
    assert estimate(store, "demo", node) == Estimate(2.0, 4.0, 9.0, LAST_RUNS), "the oldest is forgotten"
    assert estimate(store, "another", node) is None


def test_a_training_takes_what_its_steps_took(pipeline: Pipeline, made: Any) -> None:
    store, node = open_store(pipeline.store), pipeline.stages["base"]
    made("base", 50.0, fetch=2.0, steps=100)
    assert estimate(store, "demo", node) == Estimate(102.0, 102.0, 102.0, 1), "of twice the steps"
    assert estimate(store, "demo", node, step=150) == Estimate(27.0, 27.0, 27.0, 1), "of the steps that are left"
    # Its last job made 20 of 100 steps: that is a second a step.
    made("base", 20.0, fetch=2.0, steps=100, resumed_at=80)
    assert estimate(store, "demo", node) == Estimate(102.0, 152.0, 202.0, 2)


def test_the_plan_adds_up_the_longest_way_and_says_what_it_does_not_know(pipeline: Pipeline, made: Any) -> None:
    store = open_store(pipeline.store)

    def plan() -> Any:
        return estimate_plan(make_plan(pipeline, store), store, "demo")

    assert str(plan()) == "no estimate: none of these stages was made before"
    made("corpus", 10.0)
    made("corpus", 20.0)
    made("tokens", 5.0)
    made("base", 50.0, steps=100)
    found = plan()
    assert found.path == ("corpus", "tokens", "base") and found.unknown == ("words",)
    assert (found.total.low, found.total.median, found.total.high) == (115.0, 120.0, 125.0)
    assert str(found).endswith("corpus -> tokens -> base, without words, of which nothing is known")
    made("words", 1000.0)
    assert plan().path == ("corpus", "words", "tokens", "base") and plan().total.high == 1125.0


def test_the_command_shows_it(
    pipeline: Pipeline, made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made("corpus", 10.0)
    made("corpus", 20.0)
    asked = ["plan", str(tmp_path / "p.yaml"), "--store", pipeline.store]
    assert cli.main(asked) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("about 15 s (10 s to 20 s, made 2 times)") and "made" not in lines[1]
    assert lines[-1].startswith("about 15 s (10 s to 20 s) along corpus, without words, tokens, base")
    assert cli.main([*asked, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["stages"][0]["estimate"] == {"low": 10.0, "median": 15.0, "high": 20.0, "runs": 2}
    assert said["stages"][1]["estimate"] is None and said["estimate"]["path"] == ["corpus"]


def test_planning_imports_nothing_heavy(pipeline: Pipeline, made: Any, tmp_path: Path) -> None:
    made("corpus", 10.0)
    code = (
        "import sys; from flows import cli; "
        f"assert cli.main(['plan', {str(tmp_path / 'p.yaml')!r}, '--store', {pipeline.store!r}]) == 0; "
        "heavy = {'torch', 'prefect', 'pyarrow', 'wandb', 's3fs', 'transformers'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
