"""Bad pipeline files: every fault at once, each with its place, what is wrong, and what to do."""

import json
from pathlib import Path

import pytest

from infra.errors import ConfigError
from tasks.pipeline import Pipeline, load_pipeline
from tasks.pipeline_schema import schema
from tasks.stage import stages

ROOT = Path(__file__).parents[2]
GOOD = """\
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
      max_steps: 4
      global_batch_size: 8
execution:
  default: {processes: 1}
"""


def load(tmp_path: Path, text: str, *overrides: str) -> Pipeline:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    return load_pipeline(path, list(overrides))


def faults(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *overrides)
    assert caught.value.exit_code == 2
    return [str(p).replace(f"{tmp_path}/", "") for p in caught.value.problems]


def test_good_file_becomes_a_dag(tmp_path: Path) -> None:
    pipeline = load(tmp_path, GOOD)
    assert {n.name: n.needs for n in pipeline.stages.values()} == {
        "corpus": (),
        "words": ("corpus",),
        "tokens": ("corpus", "words"),
        "base": ("tokens",),
    }


def test_every_fault_is_reported_at_once(tmp_path: Path) -> None:
    text = (
        GOOD.replace("vocab_size", "vocab_sze")
        .replace("context: 16", "context: many")
        .replace("data: tokens", "data: token")
    )
    found = faults(tmp_path, text)
    assert len(found) == 3
    assert found[0] == "p.yaml:6: stages.words.tokenizer.vocab_sze: unknown field; did you mean vocab_size?"
    assert found[1].startswith("p.yaml:8: stages.tokens.pack.context: expected a valid integer")
    assert found[2] == "p.yaml:11: stages.base.pretrain.data: no stage named 'token'; did you mean tokens?"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: demo\n", "", "p.yaml:1: name: required field is missing"),
        ("name: demo", "nmae: demo", "p.yaml:1: nmae: unknown field; did you mean name?"),
        ("objective: causal_lm", "objective: casual_lm", "unknown objective 'casual_lm'"),
        ("    tokenizer: {data", "    tokeniser: {data", "unknown stage kind; did you mean tokenizer?"),
        ("data: tokens", "data: words", "'words' makes a tokenizer, but a tokens is needed here; stages that make one: tokens"),
        ("{data: corpus, vocab_size: 300}", "{data: base, vocab_size: 300}", "makes a model, but a dataset"),
        ("processes: 1", "proceses: 1", "p.yaml:17: execution.default.proceses: unknown field; did you mean processes?"),
        ("  default: {", "  bas: {", "execution.bas: no such stage; did you mean base?"),
        ("name: demo", "name: ${env:HOME}", "allowed only in store, tracking and execution"),
        ("name: demo", "name: demo\nstore: ${env:FORGELINE_NO_SUCH}", "environment variable FORGELINE_NO_SUCH is not set"),
        ("processes: 1", "processes: 3", "does not divide over 3 processes"),
        ("max_steps: 4", "max_steps: 4\n      epochs: 1", "exactly one of `epochs` and `max_steps`"),
        ("  words:", "  Words!:", "a stage name has lower-case letters"),
    ],
)  # fmt: skip
def test_single_faults(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    assert any(expected in fault for fault in faults(tmp_path, GOOD.replace(old, new)))


def test_batch_that_does_not_divide_names_the_numbers(tmp_path: Path) -> None:
    text = GOOD.replace("processes: 1", "processes: 1, per_device_train_batch_size: 3")
    (fault,) = faults(tmp_path, text)
    assert "global_batch_size" in fault
    assert "8" in fault
    assert "3" in fault


def test_cycle_is_shown_as_a_path(tmp_path: Path) -> None:
    text = GOOD.replace("{data: corpus, vocab_size: 300}", "{data: again, vocab_size: 300}") + ""
    text = text.replace("  words:\n", '  again:\n    dataset: {sources: [{files: "x/*.txt"}]}\n  words:\n')
    load(tmp_path, text)
    loop = GOOD.replace("model: {type: llama, hidden_size: 16}", "model: {type: llama}").replace(
        "  base:\n    pretrain:\n      data: tokens\n",
        "  a:\n    finetune: {model: b, data: corpus, objective: causal_lm, epochs: 1}\n"
        "  b:\n    finetune: {model: a, data: corpus, objective: causal_lm, epochs: 1}\n"
        "  base:\n    pretrain:\n      data: tokens\n",
    )
    (fault,) = faults(tmp_path, loop)
    assert "need each other in a circle" in fault
    assert "a -> b -> a" in fault or "b -> a -> b" in fault


def test_overrides(tmp_path: Path) -> None:
    pipeline = load(tmp_path, GOOD, "stages.base.learning_rate=1e-4", "execution.base.zero_stage=1", "name=other")
    params = pipeline.stages["base"].params
    assert params.learning_rate == 1e-4  # type: ignore[attr-defined]
    assert pipeline.stages["base"].execution.zero_stage == 1
    assert pipeline.name == "other"
    assert "no such stage; did you mean base?" in faults(tmp_path, GOOD, "stages.bsae.learning_rate=1")[0]
    assert "did you mean learning_rate?" in faults(tmp_path, GOOD, "stages.base.learning_rte=1")[0]
    fault = faults(tmp_path, GOOD, "stages.base.learning_rate=fast")[0]
    assert fault.startswith("--set stages.base.learning_rate=fast")
    assert "PATH=VALUE" in faults(tmp_path, GOOD, "stages.base")[0]


def test_environment_in_execution_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKS", "2")
    text = GOOD.replace("processes: 1", "processes: '${env:RANKS}', threads: '${env:NO_SUCH_THREADS:-3}'")
    execution = load(tmp_path, text).stages["base"].execution
    assert (execution.processes, execution.threads) == (2, 3)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b""])
def test_unreadable_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load_pipeline(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_pipeline(tmp_path / "none.yaml")


def test_schema_knows_every_kind_and_describes_every_field() -> None:
    found = schema()
    text = json.dumps(found)
    assert all(f'"{kind}"' in text for kind in stages())
    missing = [
        f"{name}.{field}"
        for name, definition in found["$defs"].items()
        if not name.endswith("Stage")
        for field, spec in definition.get("properties", {}).items()
        if not spec.get("description")
    ]
    assert not missing


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_config_is_valid(path: Path) -> None:
    assert load_pipeline(path).stages


def test_a_split_that_cannot_be_there_is_told(tmp_path: Path) -> None:
    text = GOOD.replace(
        "  words:\n",
        """  some:
    dataset: {sources: [{stage: corpus.tset}], split: {validation: 0, test: 0.2}}
  clean:
    dataset:
      sources: [{stage: some.test}]
      decontaminate:
        against: [corpus.nope, some.validation, some.test]
  packed: {pack: {data: corpus.train, tokenizer: words, context: 8}}
  scores: {evaluate: {models: [base.test], data: packed.test}}
  words:
""",
    )
    assert faults(tmp_path, text) == [
        "p.yaml:6: stages.some.dataset.sources[0].stage: no split 'tset' in 'corpus'; did you mean test?",
        "p.yaml:11: stages.clean.dataset.decontaminate.against[0]: no split 'nope' in 'corpus'; known: test, train, "
        "validation",
        "p.yaml:11: stages.clean.dataset.decontaminate.against[1]: 'some.validation' is always empty, as 'some' is "
        "made; it has: train, test",
        "p.yaml:13: stages.scores.evaluate.models[0]: 'base' makes a model, which has no splits; write base",
        "p.yaml:13: stages.scores.evaluate.data: 'packed.test' is always empty, as 'packed' is made; it has: train",
    ]
