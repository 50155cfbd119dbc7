"""Bad pipeline files: every fault at once, each with its place, what is wrong, and what to do."""

import json
from pathlib import Path

import pytest

from infra.errors import ConfigError
from tasks.pipeline.dag import Pipeline
from tasks.pipeline.load import load_pipeline
from tasks.pipeline.schema import schema
from tasks.stage import stages

ROOT = Path(__file__).parents[3]
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


GATED = (
    GOOD.removesuffix("execution:\n  default: {processes: 1}\n")
    + """\
  onnx:
    export: {model: base}
  scores:
    evaluate: {models: [onnx], data: corpus.test}
  gate:
    gate: {scores: scores, candidate: onnx, require: [{metric: perplexity, max: 9}]}
  release:
    promote: {model: onnx, weights: base, gate: gate, ref: demo/production}
"""
)


@pytest.mark.parametrize("after", ["1", "true", "1.5", "{gate: 1}", "[{gate: 1}]", "[[gate]]", "[gate, 2]"])
def test_after_takes_names(tmp_path: Path, after: str) -> None:
    text = GATED.replace("    export:", f"    after: {after}\n    export:")
    assert faults(tmp_path, text) == ["p.yaml:17: stages.onnx.after: takes the name of a gate, or a list of names"]


@pytest.mark.parametrize(
    "given", ['files: "data/[z-a].txt"', 'files: "[!]x"', 'files: "a.txt", exclude: ["[z-a]"]', 'files: "~nobody-of-that-name/x"']
)  # fmt: skip
def test_a_pattern_that_is_none_is_told_at_once(tmp_path: Path, given: str) -> None:
    text = GOOD.replace('files: "texts/*.txt"', given)
    if "[!]x" in given:
        assert load(tmp_path, text).name == "demo"  # a bracket that is not closed is one
        return
    assert len(said := faults(tmp_path, text)) == 1
    assert said[0].startswith("p.yaml:4: stages.corpus.dataset.sources[0]")


def test_a_number_that_no_key_can_hold_is_told_where_it_stands(tmp_path: Path) -> None:
    text = GOOD.replace("hidden_size: 16", "hidden_size: 16, x: {y: [1, .nan]}")
    assert faults(tmp_path, text) == ["p.yaml:13: stages.base.pretrain.model.x.y[1]: nan cannot be used"]


@pytest.mark.parametrize("settings", ["[]", '""', "0", "false"])
def test_execution_of_a_stage_is_a_mapping(tmp_path: Path, settings: str) -> None:
    text = GOOD.replace("default: {processes: 1}", f"base: {settings}")
    assert "execution.base: expected a mapping of fields" in faults(tmp_path, text)[0]


def test_a_deepspeed_file_nested_without_end_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    text = GOOD.replace("default: {processes: 1}", "base: {deepspeed: deep.json}")
    assert "execution.base.deepspeed: cannot read deep.json: not valid JSON" in faults(tmp_path, text)[0]
    text = text.replace("deep.json", "~nobody-of-that-name/x.json")
    assert "cannot read ~nobody-of-that-name/x.json" in faults(tmp_path, text)[0]


@pytest.mark.parametrize(
    ("path", "value"),
    [("stages.gate.require[0].max", 3), ("stages.gate.gate.require[0].max", 3), ("stages.gate.require.0.max", 3),
     (" stages.gate.require[0].max ", 3)],
)  # fmt: skip
def test_overrides_are_spelled_as_messages_spell_paths(tmp_path: Path, path: str, value: int) -> None:
    gate = load(tmp_path, GATED, f"{path}={value}").stages["gate"]
    assert gate.params.require[0].max == value  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("override", "fault"),
    [("stages.gate.require[1].max=3", "stages.gate.gate.require[1]: no such item; the list has 1, and [0] is the first"),
     ("stages.gate.require.².max=3", "stages.gate.gate.require.²: no such item; the list has 1, and [0] is the first"),
     ("stages.gate.require[0].max.x=3", "stages.gate.gate.require[0].max.x: stages.gate.gate.require[0].max is a single value"),
     ("stages[0].x=3", "stages[0]: stages is no list"), ("stages.base.max_steps=08", "stages.base.pretrain.max_steps: 08 begins"),
     ("stages.base.max_steps=[", "stages.base.pretrain.max_steps: not valid YAML"), ("[0]=1", "expected PATH=VALUE")],
)  # fmt: skip
def test_an_override_that_is_wrong_is_named(tmp_path: Path, override: str, fault: str) -> None:
    assert faults(tmp_path, GATED, override)[0].startswith(f"--set {override}: {fault}")


def test_a_value_from_the_environment_that_is_no_yaml_is_told_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = GOOD.replace("processes: 1", 'processes: "${env:HOW_MANY}"')
    for value in ("08", "[secret", "!!secret x"):
        monkeypatch.setenv("HOW_MANY", value)
        said = faults(tmp_path, text)
        assert said[0].startswith("p.yaml:17: execution.default.processes: what ${env:HOW_MANY} stands for is no YAML")
        assert "secret" not in "".join(said)


LONG = "a" * 101


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [("name: demo", f"name: {LONG}", "p.yaml:1: name: expected String should match pattern"),
     ("  onnx:", f"  {LONG}:", "a stage name has lower-case letters, digits, - and _ only, and at most 100 of them"),
     ("  onnx:", '  "onnx\\n":', "a stage name has lower-case letters, digits, - and _ only, and at most 100 of them"),
     ("models: [onnx],", 'models: [onnx], champion: "../..",', "stages.scores.evaluate.champion: '../..' cannot be the name"),
     ("models: [onnx],", f"models: [onnx], champion: demo/{LONG},", "cannot be the name of a ref"),
     ("models: [onnx],", 'models: [onnx], champion: "demo/production\\n",', "cannot be the name of a ref"),
     ("data: tokens", 'data: "ref:../.."', "stages.base.pretrain.data: '../..' cannot be the name of a ref"),
     ("demo/production", f"demo/{LONG}", "stages.release.promote.ref: expected String should match pattern"),
     ("demo/production", "demo/" + "a" * 95, "-weights' cannot be the name of a ref"),
     ("demo/production", "demo/000001.json", "stages.release.promote.ref: 'demo/000001.json' cannot be the name of a ref"),
     ("demo/production", "demo/corpus/latest", "demo/corpus/latest is what a stage made last, which every run moves"),
     ("demo/production", "other/corpus/latest", "other/corpus/latest is what a stage made last")],
)  # fmt: skip
def test_a_name_that_no_ref_can_have_is_told_before_anything_runs(
    tmp_path: Path, old: str, new: str, fault: str
) -> None:
    assert any(fault in said for said in faults(tmp_path, GATED.replace(old, new, 1)))


def test_two_releases_of_one_file_do_not_move_one_ref(tmp_path: Path) -> None:
    second = "  second:\n    promote: {model: onnx, gate: gate, ref: REF}\n"
    for ref in ("demo/production", "demo/production-weights"):
        said = faults(tmp_path, GATED + second.replace("REF", ref))
        assert said == [
            f"p.yaml:25: stages.second.promote.ref: {ref} is moved by 'release' already; "
            "of two releases the last to finish would win"
        ]
    assert load(tmp_path, GATED + second.replace("REF", "demo/staging")).stages["second"]


def test_weights_of_no_objective_are_told_where_one_is_needed(tmp_path: Path) -> None:
    given = "  theirs: {pretrained: {folder: x}}\n  out: {export: {model: theirs}}\n"
    assert faults(tmp_path, GATED + given) == [
        "p.yaml:25: stages.out.export.model: the weights of 'theirs' were trained for no objective; put a `finetune` "
        "stage between, or name what they were trained for: `pretrained: {objective: ...}`"
    ]
    assert load(tmp_path, GATED + given.replace("folder: x", "folder: x, objective: text_classification")).stages
    assert load(tmp_path, GATED + given.replace("model: theirs", "model: base")).stages
