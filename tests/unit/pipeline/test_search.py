"""A search is written out as the stages a person would have written, and a gate's no stops its branch and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import ConfigError
from tasks.pipeline.dag import Pipeline
from tasks.pipeline.load import load_pipeline
from tasks.pipeline.search import Results
from tasks.pipeline.stopped import only_dropped, stopped_by
from tasks.stage import identity_params

HEAD = """\
name: smaller
stages:
  texts:
    dataset: {sources: [{files: "texts/*.jsonl", format: jsonl}], label: {from: column:label}}
  theirs:
    pretrained: {folder: model}
  teacher:
    finetune: {model: theirs, data: texts, objective: text_classification, max_steps: 4}
"""
SPACE = """\
  small:
    search:
      model: teacher
      steps:
        - choose:
            whole: null
            half: {distill: {data: texts, layers: 1, max_steps: 2}}
        - choose:
            wide: null
            lean: {prune: {data: texts, keep: {choose: [0.75, 0.5]}, heal: {max_steps: 2, teacher: teacher}}}
        - export: {}
        - choose: {fp32: null, int8: {quantize: {}}}
      screen: {data: texts.validation, require: [{metric: f1_macro, max_drop: 0.1}]}
"""
TAIL = """\
  scores:
    evaluate: {models: [teacher, small], data: texts.test}
  best:
    frontier: {scores: scores, against: teacher, require: [{metric: f1_macro, max_drop: 0.1}]}
  release:
    promote: {gate: best, ref: smaller/production}
"""


def load(folder: Path, text: str, *overrides: str) -> Pipeline:
    path = folder / "p.yaml"
    path.write_text(text)
    return load_pipeline(path, list(overrides))


def faults(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides)
    return [str(p).replace(f"{folder}/", "") for p in caught.value.problems]


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return load(tmp_path, HEAD + SPACE + TAIL)


def models(pipeline: Pipeline) -> list[str]:
    return list(pipeline.stages["scores"].params.model_dump()["models"])


def test_candidates_are_called_by_what_was_chosen(pipeline: Pipeline) -> None:
    assert models(pipeline) == [
        "teacher",
        "small-export", "small-int8",
        "small-lean-keep075-export", "small-lean-keep075-int8", "small-lean-keep05-export", "small-lean-keep05-int8",
        "small-half-export", "small-half-int8",
        "small-half-lean-keep075-export", "small-half-lean-keep075-int8",
        "small-half-lean-keep05-export", "small-half-lean-keep05-int8",
    ]  # fmt: skip


def test_a_written_stage_is_the_one_a_person_would_have_written(pipeline: Pipeline, tmp_path: Path) -> None:
    by_hand = load(
        tmp_path,
        HEAD
        + """\
  half:
    distill: {teacher: teacher, data: texts, layers: 1, max_steps: 2}
  half_lean:
    prune: {model: half, data: texts, keep: 0.5, heal: {teacher: teacher, max_steps: 2}}
  half_lean_onnx:
    export: {model: half_lean}
  half_lean_int8:
    quantize: {model: half_lean_onnx}
""",
    )
    names = {
        "half": "small-half",
        "half_lean": "small-half-lean-keep05",
        "half_lean_onnx": "small-half-lean-keep05-export",
        "half_lean_int8": "small-half-lean-keep05-int8",
        "teacher": "teacher",
        "texts": "texts",
    }
    for mine, written in names.items():
        one, other = by_hand.stages[mine], pipeline.stages[written]
        assert identity_params(one.params) == identity_params(other.params)
        assert [names[item.stage] for item in one.inputs if item.stage in names] == [
            item.stage for item in other.inputs if item.stage in names.values()
        ]


def test_what_is_worked_on_was_screened_and_what_ships_was_not(pipeline: Pipeline) -> None:
    after = {name: node.after for name, node in pipeline.stages.items() if node.after}
    assert after["small-half-export"] == after["small-half-lean-keep05"] == ("small-half-passes",)
    assert after["small-half-lean-keep05-export"] == ("small-half-lean-keep05-passes",)
    assert "small-export" not in after and "small-half-int8" not in after
    gate = pipeline.stages["small-half-passes"].params.model_dump()
    assert (gate["candidate"], gate["against"]) == ("small-half", "teacher")


def test_a_refused_screen_drops_its_branch_and_the_rest_is_judged(pipeline: Pipeline) -> None:
    nodes = pipeline.stages.values()
    stopped = stopped_by({"small-half-passes"}, nodes)
    assert stopped == dict.fromkeys(
        [
            n
            for n in pipeline.stages
            if n.startswith("small-half-") and n not in ("small-half-screen", "small-half-passes")
        ],
        "small-half-passes",
    )
    assert only_dropped({"small-half-passes"}, nodes)
    assert stopped_by({"best"}, nodes) == {"release": "best"} and not only_dropped({"best"}, nodes)


def test_where_nothing_is_left_to_judge_nothing_is_judged(tmp_path: Path) -> None:
    pipeline = load(
        tmp_path,
        HEAD
        + SPACE.replace("whole: null\n", "").replace("wide: null\n", "")
        + TAIL.replace("teacher, small]", "small]"),
    )
    stopped = stopped_by({"small-half-passes"}, pipeline.stages.values())
    assert {"scores", "best", "release"} <= stopped.keys()
    assert not only_dropped({"small-half-passes"}, pipeline.stages.values())


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.booleans())
def test_every_combination_is_a_candidate_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], skip: bool
) -> None:
    steps = "".join(
        f"        - choose:\n{'            none: null' if skip else ''}\n"
        + "".join(f"            s{i}o{j}: {{prune: {{data: texts, keep: 0.{j + 1}}}}}\n" for j in range(size))
        for i, size in enumerate(sizes)
    )
    text = HEAD + f"  small:\n    search:\n      model: teacher\n      steps:\n{steps}" + TAIL
    found = models(load(tmp_path_factory.mktemp("p"), text))[1:]
    expected = 1
    for size in sizes:
        expected *= size + skip
    assert len(set(found)) == len(found) == expected - skip, "all null is the model it began with"


def test_settings_and_overrides_of_a_search_are_those_of_all_its_stages(tmp_path: Path) -> None:
    text = HEAD + SPACE + TAIL + "execution:\n  small: {threads: 2}\n  small-int8: {threads: 1}\n"
    stages = load(tmp_path, text, "stages.small.steps.0.choose.half.distill.layers=2").stages
    assert stages["small-half"].params.model_dump()["layers"] == 2
    assert (stages["small-half-int8"].execution.threads, stages["small-int8"].execution.threads) == (2, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("layers: 1", "layrs: 1"), "p.yaml:15: stages.small-half.distill.layrs: unknown field; did you mean layers?"),
        (("keep: {choose: [0.75, 0.5]}", "keep: {choose: [0, 0.5]}"), "p.yaml:18: stages.small-lean-keep0.prune.keep: expected greater than 0 (got 0)"),
        (("distill: {data", "distil: {data"), "p.yaml:15: stages.small.search.steps[0].choose.half: a step is `{kind: params}`; did you mean distill?"),
        (("whole: null", "whole: {gate: {}}"), "p.yaml:14: stages.small.search.steps[0].choose.whole.gate: works on no model, so it is no step of a search"),
        (("choose: {fp32: null, int8: {quantize: {}}}", "choose: []"), "p.yaml:20: stages.small.search.steps[3]: a step is `{kind: params}` or `choose: {name: {kind: params}, other: null}`"),
        (("- export: {}", "- exprt: {}"), "p.yaml:19: stages.small.search.steps[2]: a step is `{kind: params}`; did you mean export?"),
        (("wide: null", "half: {distill: {data: texts, layers: 2, max_steps: 2}}"), "p.yaml:15: stages.small.search.steps[0].choose.half.distill: two candidates would be called 'small-half'; call their choices otherwise"),
        (("[0.75, 0.5]", str([n / 1000 for n in range(1, 150)])), "p.yaml:12: stages.small.search.steps: more than 200 candidates; take choices out, or give `trials`"),
        (("model: teacher\n      steps", "model: taecher\n      steps"), "p.yaml:11: stages.small.search.model: no stage named 'taecher'; did you mean teacher?"),
        (("  teacher:\n", "  small-half: {export: {model: teacher}}\n  teacher:\n"), "p.yaml:11: stages.small.search: writes a stage 'small-half', but there is one of that name; call one of them otherwise"),
        (("  small:\n", "  small:\n    export: {}\n"), "p.yaml:9: stages.small: a search stands alone, without another kind"),
        (("screen: {data: texts.validation,", "screen: {"), "p.yaml:21: stages.small.search.screen.data: required field is missing"),
    ],
)  # fmt: skip
def test_a_fault_is_told_once_where_it_stands(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    text = HEAD + SPACE + TAIL
    assert change[0] in text
    found = faults(tmp_path, text.replace(change[0], change[1], 1))
    assert [line for line in found if line.startswith(message)] and len(found) == 1, found


def test_only_what_can_say_no_can_be_waited_for(tmp_path: Path) -> None:
    text = HEAD + "  onnx:\n    export: {model: teacher}\n    after: teacher\n"
    assert faults(tmp_path, text) == [
        "p.yaml:11: stages.onnx.after: 'teacher' is no stage that can say no; those of this file: none"
    ]


def test_waiting_for_a_gate_changes_no_identity(pipeline: Pipeline) -> None:
    node: Any = pipeline.stages["small-half-export"]
    assert node.needs == ("small-half", "small-half-passes")
    assert "after" not in identity_params(node.params)


TRIALS = (
    HEAD
    + """\
  small:
    search:
      model: teacher
      steps:
        - prune: {data: texts, keep: {between: [0.3, 0.9]}, method: {choose: [ffn_width, layers]}}
        - choose: {fp32: null, onnx: {export: {}}}
      trials: {data: texts.validation, number: 16, at_once: 4}
"""
    + TAIL
)


def tried(folder: Path, results: Results) -> tuple[list[str], bool]:
    (folder / "p.yaml").write_text(TRIALS)
    pipeline = load_pipeline(folder / "p.yaml", results=results)
    assert models(pipeline)[1:] == pipeline.searches[0].candidates
    return pipeline.searches[0].candidates, pipeline.searches[0].undecided


def reached(candidate: str) -> tuple[float, float] | None:
    """Made-up quality and size; what was cut most was dropped."""
    keep = float(f"0.{candidate.split('keep0')[1].split('-')[0]}")
    return None if keep < 0.4 else (keep, 10.0)


def test_trials_follow_from_results_and_from_nothing_else(tmp_path: Path) -> None:
    known: dict[str, Any] = {}
    sizes = []
    while True:
        found, undecided = tried(tmp_path, Results({"small": known}))
        sizes.append(len(found))
        if not undecided:
            break
        known = {name: reached(name) for name in found}
    assert sizes[0] == 4 and sizes[-1] == len(set(found)) == 16 and sizes == sorted(sizes)
    assert all(0.3 <= float(f"0.{name.split('keep0')[1].split('-')[0]}") <= 0.9 for name in found)
    assert tried(tmp_path, Results({"small": known}))[0] == found, "replayed"
    turned = {name: (-values[0], values[1]) if values else None for name, values in known.items()}
    assert tried(tmp_path, Results({"small": turned}))[0] != found, "what was reached decides what is tried"


def test_a_search_cut_short_is_one_of_what_was_tried(tmp_path: Path) -> None:
    first, _ = tried(tmp_path, Results())
    known = {name: reached(name) for name in first[:2]}
    assert tried(tmp_path, Results({"small": known}, closed=True)) == (first[:2], False)


def test_a_space_that_is_used_up_ends_the_trials(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(TRIALS.replace("{between: [0.3, 0.9]}", "0.5"))
    known: dict[str, Any] = {}
    while (pipeline := load_pipeline(tmp_path / "p.yaml", results=Results({"small": known}))).searches[0].undecided:
        known = dict.fromkeys(pipeline.searches[0].candidates, (0.5, 10.0))
    assert sorted(known) == [
        "small-ffn_width", "small-ffn_width-onnx", "small-layers", "small-layers-onnx",
    ]  # fmt: skip


def test_a_range_without_trials_is_refused(tmp_path: Path) -> None:
    text = HEAD + SPACE.replace("keep: {choose: [0.75, 0.5]}", "keep: {between: [0.3, 0.9]}") + TAIL
    assert faults(tmp_path, text) == [
        "p.yaml:10: stages.small.search: a range (`between`) has no end of candidates: give `trials`, or `choose` from values"
    ]


@pytest.mark.parametrize(
    ("step", "fault"),
    [("export: 1", "expected the fields of the stage"), ("export: {choose: [{}, 1]}", "expected the fields of the stage"),
     ("prune: {keep: {choose: 1}}", "`choose` takes a list of values"), ("prune: {keep: {choose: []}}", "`choose` takes a list"),
     ("prune: {keep: {choose: null}}", "`choose` takes a list"), ("prune: {keep: {between: [a, b]}}", "`between` takes two"),
     ("prune: {keep: {between: [0.9, 0.4]}}", "`between` takes two"), ("prune: {keep: {between: [.nan, 1]}}", "`between` takes two"),
     ("prune: {" + ", ".join(f"f{i}: {{choose: [1, 2, 3, 4]}}" for i in range(40)) + "}", "more than 200 candidates")],
)  # fmt: skip
def test_choices_that_are_none_or_without_end_are_told(tmp_path: Path, step: str, fault: str) -> None:
    text = f"{HEAD}  small: {{search: {{model: teacher, steps: [{{{step}}}]}}}}\n"
    said = faults(tmp_path, text)
    assert any(fault in one for one in said) and all("p.yaml:9: stages.small" in one for one in said)


@pytest.mark.parametrize("models", ["[[small]]", "[small, {a: 1}]", "[null, small]"])
def test_a_list_of_models_that_holds_something_else_is_told(tmp_path: Path, models: str) -> None:
    text = HEAD + SPACE + TAIL.replace("[teacher, small]", models)
    said = faults(tmp_path, text)
    assert any("stages.scores.evaluate.models[" in one and "expected a valid string" in one for one in said)
