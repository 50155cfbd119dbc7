"""Whatever changes a result changes its key, and nothing else does: every field of the quickstart, one at a time.

Plans only. Each stage of `configs/quickstart.yaml` has a dummy artifact under its real key; then a field gets another
valid value, and the plan must say `run` for just that stage, `unknown` for what depends on it, `reuse` for the rest.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from infra import refs
from infra.artifacts import ArtifactRef, Manifest
from infra.budget import Budget
from infra.errors import ConfigError
from infra.execution import Execution
from infra.open_store import open_store
from infra.store import Store
from infra.tracking import TrackingSettings
from tasks.objective import Augmentation, Objective, objective_class
from tasks.objectives.text.inputs.augmentation import Augment
from tasks.pipeline.dag import Pipeline
from tasks.pipeline.load import load_pipeline
from tasks.pipeline.node import StageNode
from tasks.plan.plan import make_plan
from tasks.plan.resolved import Resolved, latest_ref, resolve
from tasks.stage import Input, Located, stages

QUICKSTART = Path(__file__).parents[3] / "configs/quickstart.yaml"
Path_ = tuple[str | int, ...]

# Fields with no other valid value. A new field that cannot be mutated fails the test until its reason stands here.
ONE_CHOICE = "it has one choice"
TWINS = "its only other value makes teacher and scratch the same stage"
FIXED = {
    "teacher.init": TWINS,
    "scratch.init": TWINS,
    "scratch.prompt": "it needs a network that knows something",
    "shared.r_drop": "it is not offered for several tasks",
    "shared.uncertainty_rate": "it needs `weighting: uncertainty`",
    **{f"lean.{field}": "it is for single weights" for field in ("pattern", "scope", "schedule")},
    **{f"{stage}.schedule": "it needs `heal`" for stage in ("sparse", "grouped")},
    **{f"grouped.{field}": "`pattern` rules it out" for field in ("keep", "scope")},
    "gradual.pattern": "`schedule` rules it out",
    "onnx.format": ONE_CHOICE,
    **{f"int8.{field}": "it is for four bits" for field in ("method", "group_size")},
    **{f"int8.{field}": "it needs `data`" for field in ("keep_sensitive", "min_agreement")},
    "four.scheme": "`gptq` is for four bits",
    "functions.sources.0.format": "it follows from `python_functions`",
    **{
        f"{stage}.sources.0.{field}": "files and functions have no columns"
        for stage in ("corpus", "functions")
        for field in ("template", "messages_column", "chat_template", "columns", "id_column", "quoting", "escape")
    },
    **dict.fromkeys(
        (
            *(f"corpus.sources.0.{field}" for field in ("dataset", "config", "split", "revision", "features")),
            *(f"functions.sources.0.{field}" for field in ("dataset", "revision", "features")),
        ),
        "of sources that the datasets library reads",
    ),
    "functions.label.from": "functions have no columns",
    **{
        f"{stage}.objective.{field}": "it and another option go together"
        for stage in ("base", "shared.tasks.1")
        for field in ("name", "chat_template")
    },
    **{
        f"{stage}.objective.{field}": "it and another option go together"
        for stage in ("teacher", "scratch", "shared.tasks.0")
        for field in ("name", "problem", "labels", "target")
    },
    **{
        f"{stage}.{field}": "it needs `eval_every`"
        for stage in (
            "base",
            "teacher",
            "scratch",
            "student",
            "shallow",
            "lean.heal",
            "gradual.heal",
            "aware",
            "shared",
        )
        for field in ("keep", "patience")
    },
    **{f"{stage}.heal.freeze_batch_norm": "a cut needs new statistics" for stage in ("lean", "gradual")},
    "student.unlabelled": "it needs `alpha: 1`",
    **{f"shallow.{field}": "stored outputs say nothing of it" for field in ("hidden", "attention")},
    **{f"rewritten.decoding.{field}": "beams rule it out" for field in ("do_sample", "temperature", "top_k", "top_p")},
    **{f"written.decoding.{field}": "sampling rules it out" for field in ("do_sample", "num_beams", "length_penalty")},
    "divided.slices.package.edges": "`pattern` rules it out",
    "divided.slices.package.listed": "`pattern` rules it out",
    "divided.slices.length.pattern": "`edges` rule it out",
    "divided.slices.length.listed": "`edges` rule it out",
    "execution.launcher": ONE_CHOICE,
    "execution.offload_optimizer": "it needs a ZeRO stage",
    "execution.offload_parameters": "it needs a ZeRO stage",
    "budget.money": "it needs a price",
}
SETTINGS = ("tracking.", "budget.", "execution.")
# What says where data lies; the content enters the key instead, which the tests of sources below show.
LOCATED = {"files", "python_functions", "exclude", "given", "saved", "tasks"}
MODELS: dict[str, list[dict[str, Any]]] = {
    "Label": [{"from": "package"}],
    "NearDuplicates": [{}],
    "TrainingParams": [{"max_steps": 3}],
    "Healing": [{"max_steps": 3}],
    "Language": [{"keep": ["en"]}],
    "Pii": [{"mask": ["email"]}],
    "Decontaminate": [{"against": ["functions"]}, {"against": ["corpus"]}],
    "Augment": [{"delete": 0.1}],
    "Freeze": [{"all_but_last": 1}],
    "Lora": [{}],
    "Objective": [{"name": "causal_lm"}],
    "Prompt": [{}],
    "PruningSchedule": [{}],
    "Slicing": [{"by": "id"}],
    "Augmentation": [{"noise": 0.1}],
}
# Stages that the quickstart does without.
MORE = """\
  written:
    generate:
      models: [base]
      data: functions.test
      decoding: {do_sample: true, temperature: 0.7, top_k: 5, top_p: 0.9, stop: [";"]}
      post_process: [strip]
      metrics: [exact_match]
  divided:
    evaluate:
      models: [base]
      data: functions.test
      slices:
        package: {by: id, pattern: "[a-z]+"}
        length: {by: text, edges: [100, 200]}
      perturbations: {typos: {noise: 0.1, synonyms: {get: [fetch]}, replace: 0.5}}
  asked:
    harness: {models: [base], tasks: asked}
  softened:
    soft_targets: {teacher: teacher, data: functions}
  shallow:
    distill: {teacher: teacher, soft_targets: softened, data: functions, layers: 1, alpha: 1, max_steps: 1}
  rewritten:
    pseudo_label: {teacher: base, data: functions, decoding: {num_beams: 2}}
  sparse:
    prune: {model: student, data: functions, method: magnitude, keep: 0.5}
  grouped:
    prune: {model: student, data: functions, method: magnitude, pattern: "2:4"}
  gradual:
    prune:
      model: student
      data: functions
      method: magnitude
      keep: 0.5
      heal: {max_steps: 5}
      schedule: {every: 2, begin: 0.1}
  aware:
    qat: {model: student, data: functions, scheme: int4, max_steps: 3}
  four:
    quantize: {model: onnx, scheme: int4, method: gptq, data: functions, keep_sensitive: 1}
  smallest:
    frontier:
      scores: scores
      against: teacher
      require: [{metric: f1_macro, max_drop: 0.02, confidence: 0.95}]
  shared:
    multitask:
      model: base
      tasks:
        - {name: kind, data: functions, objective: text_classification}
        - {name: words, data: functions, objective: causal_lm}
      epochs: 1
  plain:
    task_model: {model: shared, task: kind}
"""
WORDS = [
    ";",
    "row",
    "package",
    "causal_lm",
    "text_classification",
    "gpt2",
    "another",
    "column:label",
    "latin-1",
    "1:4",
    "loss",
]


@dataclass
class Quickstart:
    """The quickstart over a small folder of sources, every stage with a dummy artifact in the store."""

    folder: Path
    data: dict[str, Any]
    store: Store

    def load(self, data: dict[str, Any]) -> Pipeline:
        return self.load_text(json.dumps(data))

    def load_text(self, text: str) -> Pipeline:
        file = self.folder / "mutated.yaml"
        file.write_text(text)
        return load_pipeline(file, store=self.store.url)

    def actions(self, pipeline: Pipeline) -> dict[str, str]:
        return {line.node.name: line.action for line in make_plan(pipeline, self.store)}


def commit(store: Store, folder: Path, node: StageNode, resolved: Resolved, content: str = "") -> Manifest:
    """A dummy artifact under a stage's real key; its content is the stage's name unless given."""
    payload, records = folder / "payload", folder / "records"
    payload.mkdir(exist_ok=True)
    records.mkdir(exist_ok=True)
    (payload / "file").write_text(content or node.name)
    (records / "sources.json").write_text(json.dumps([[s.path, s.sha256] for s in resolved.sources]))
    return store.commit(
        kind=node.stage.kind,
        type=node.stage.makes,
        key=resolved.key,
        attempt=f"{node.name}-1",
        payload_dir=payload,
        records_dir=records if node.stage.sources else None,
        identity=resolved.identity,
        metrics={"passed": 1.0} if node.stage.refuses else {},
    )


def build(folder: Path) -> Quickstart:
    text = QUICKSTART.read_text(encoding="utf-8").replace("${python:stdlib}", "source")
    text = text.replace("\nstages:\n", f"\nstages:\n{MORE}", 1)
    (folder / "asked").mkdir()
    (folder / "asked/one.yaml").write_text("task: one\n")
    data = yaml.safe_load(text)
    for package in [*data["stages"]["functions"]["dataset"]["label"]["keep"], "http"]:
        (folder / "source" / package).mkdir(parents=True)
        (folder / "source" / package / "one.py").write_text(f"def {package}():\n    return 1\n")
    store = open_store(str(folder / "store"))
    quickstart = Quickstart(folder, data, store)
    (folder / "quickstart.yaml").write_text(text)
    pipeline = quickstart.load_text(text)
    made: dict[str, ArtifactRef] = {}
    for node in pipeline.stages.values():
        manifest = commit(store, folder, node, resolve(node, made))
        made[node.name] = manifest.ref
        refs.advance(store, latest_ref(pipeline.name, node.name), manifest.ref)
        refs.advance(store, f"elsewhere/{manifest.type}", _elsewhere(quickstart, node))
    for name, node in pipeline.stages.items():  # every default spelled out, so that unset fields are walked too
        data["stages"][name] = {node.stage.kind: _spelled_out(node.params)}
    assert set(quickstart.actions(quickstart.load(data)).values()) == {"reuse"}, "a default spelled out is the default"
    return quickstart


def _elsewhere(quickstart: Quickstart, node: StageNode) -> ArtifactRef:
    """Another artifact of the type a stage makes, for inputs that no other stage of the pipeline fits."""
    resolved = Resolved(f"elsewhere-{node.stage.makes}", {}, {}, ())
    return commit(quickstart.store, quickstart.folder, node, resolved, f"elsewhere {node.stage.makes}").ref


def _spelled_out(params: BaseModel) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(params.model_dump_json())
    for source in data.get("sources", []):
        for name in [name for name in ("files", "python_functions", "stage") if source[name] is None]:
            del source[name]
    return data


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    return build(tmp_path_factory.mktemp("quickstart"))


# --- other values -----------------------------------------------------------------------------------------------------


def options(annotation: Any) -> list[Any]:
    """The members of a union, and what `Annotated` wraps."""
    if typing.get_origin(annotation) is typing.Annotated:
        return options(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, type(int | str)):
        return [one for arg in typing.get_args(annotation) for one in options(arg)]
    return [annotation]


def others(value: Any, annotation: Any) -> Iterator[Any]:
    """Other values of a field, likely valid first: by what it holds, then by what its annotation allows."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (other for other in (value + 1, value * 2, value / 2, value + 16, 0.5) if other != value)
    elif isinstance(value, str):
        yield from (word for word in (f"{value}2", *WORDS) if word != value)
    elif isinstance(value, list) and value:
        yield value[:-1]
        yield from ([*value[:-1], other] for other in others(value[-1], Any))
    for option in options(annotation):
        if typing.get_origin(option) is Literal:
            yield from (choice for choice in typing.get_args(option) if choice != value)
        elif option is type(None) and value is not None:
            yield None
        elif isinstance(option, type) and issubclass(option, BaseModel) and value is None:
            yield from MODELS[option.__name__]
        elif option in (int, float) and (value is None or isinstance(value, str)):
            yield from (1, 0.5, 1000)
        elif option is str and value is None:
            yield from WORDS
        elif typing.get_origin(option) is list and not value:
            yield from (["another"], ["{text}"], [0.5])
        elif typing.get_origin(option) is dict and (made := _nested(option)):
            yield from ({**value, "another": one} for one in MODELS[made[0].__name__])
        elif typing.get_origin(option) is dict and not value:
            yield from ({"wall_clock_breakdown": True}, {"a": "b"})


def fields(model: type[BaseModel], data: dict[str, Any], path: Path_ = ()) -> Iterator[tuple[Path_, FieldInfo | None]]:
    """Every field of a spelled-out model, nested models and list items too; extra fields have no FieldInfo."""
    for name, value in data.items():
        info = model.model_fields.get(name)
        yield (*path, name), info
        nested = _nested(info.annotation) if info else []
        if value and nested == [Objective]:  # its options are those of the one that is named
            nested = [objective_class(value["name"])]
        if nested == [Augmentation]:  # those of the pipeline are of texts
            nested = [Augment]
        items = enumerate(value) if isinstance(value, list) else [(None, value)]
        if info and nested and any(typing.get_origin(option) is dict for option in options(info.annotation)):
            items = value.items()
        for i, item in items:
            if nested and isinstance(item, dict):
                yield from fields(nested[0], item, (*path, name) if i is None else (*path, name, i))


def _nested(annotation: Any) -> list[type[BaseModel]]:
    found = []
    for option in options(annotation):
        if typing.get_origin(option) in (list, dict):
            found += _nested(typing.get_args(option)[-1])
        elif isinstance(option, type) and issubclass(option, BaseModel):
            found.append(option)
    return found


def at(data: Any, path: Path_) -> Any:
    for part in path:
        data = data[part]
    return data


def mutated(data: dict[str, Any], path: Path_, value: Any) -> Iterator[dict[str, Any]]:
    """`data` with one field changed; then also with a sibling unset, for fields of which exactly one is given."""
    changed = copy.deepcopy(data)
    at(changed, path[:-1])[path[-1]] = value
    yield changed
    if at(data, path) is None:
        for sibling, given in at(data, path[:-1]).items():
            if given is not None and sibling != path[-1]:
                partner = copy.deepcopy(changed)
                at(partner, path[:-1])[sibling] = None
                yield partner


def first_valid(quickstart: Quickstart, path: Path_, values: Iterator[Any]) -> Pipeline | None:
    for value in values:
        for changed in mutated(quickstart.data, path, value):
            try:
                stages()[str(path[2])].params.model_validate(at(changed, path[:3]))  # far cheaper than loading the file
                pipeline = quickstart.load(changed)
            except (ConfigError, ValidationError):
                continue
            if not twins(pipeline):
                return pipeline
    return None


def twins(pipeline: Pipeline) -> bool:
    """Whether two stages are one and the same: what one of them made is rightly reused for the other."""
    seen = [(node.stage.kind, node.params) for node in pipeline.stages.values()]
    return any(one in seen[:i] for i, one in enumerate(seen))


def inputs(quickstart: Quickstart, name: str, info: FieldInfo, value: Any) -> Iterator[Any]:
    """Other stages, other splits, refs; for a list also one more and one less."""
    types = next(m for m in info.metadata if isinstance(m, Input)).types
    names = [n for n, body in quickstart.data["stages"].items() if stages()[next(iter(body))].makes in types]
    wanted = [n for n in names if n != name] + [f"ref:elsewhere/{type}" for type in types]
    if isinstance(value, list):
        yield from ([*value[:-1], other] for other in wanted if other not in value)
    elif value is not None:
        yield from (other for other in wanted if other != value)
    else:
        yield from wanted


def dependants(pipeline: Pipeline, name: str) -> set[str]:
    """Stages that need `name`, directly or not."""
    found: set[str] = set()
    for node in pipeline.stages.values():
        if {name, *found} & set(node.needs):
            found.add(node.name)
    return found


def judge(quickstart: Quickstart, pipeline: Pipeline, name: str) -> tuple[list[str], list[str]]:
    """(stages that should have been left alone, stages that should have noticed) of a change in stage `name`."""
    plan = {line.node.name: line for line in make_plan(pipeline, quickstart.store)}
    after = dependants(pipeline, name)
    hits = [n for n, line in plan.items() if n != name and n not in after and line.action != "reuse"]
    missed = [n for n in after if (plan[n].action, plan[n].reason) != ("unknown", f"unknown until {name}")]
    return hits, missed + ([] if plan[name].action == "run" else [name])


# --- identity ---------------------------------------------------------------------------------------------------------


def test_each_identity_field_runs_its_stage_and_no_other(quickstart: Quickstart) -> None:
    count, wrong_hits, false_misses, fixed = 0, [], [], set()
    for name, body in quickstart.data["stages"].items():
        ((kind, params),) = body.items()
        for path, info in fields(stages()[kind].params, params):
            field = ".".join(map(str, (name, *path)))
            full, value = ("stages", name, kind, *path), at(params, path)
            if info and any(isinstance(m, Located) for m in info.metadata):
                assert path[-1] in LOCATED, f"{field}: add tests of what it locates"
                continue
            if info and any(isinstance(m, Input) for m in info.metadata):
                values = inputs(quickstart, name, info, value)
            else:
                values = others(value, info.annotation if info else Any)
            pipeline = first_valid(quickstart, full, values)
            if pipeline is None:
                # A group of fields that cannot be left out has no other value as a whole; its fields are walked.
                if not isinstance(value[0] if isinstance(value, list) and value else value, dict):
                    fixed.add(field)
                continue
            hits, misses = judge(quickstart, pipeline, name)
            count += 1
            wrong_hits += [f"{field}: {hit}" for hit in hits]
            false_misses += [f"{field}: {miss}" for miss in misses]
    sys.stdout.write(f"{count} fields mutated, wrong hits {len(wrong_hits)}, false misses {len(false_misses)}\n")
    assert not wrong_hits and not false_misses, (wrong_hits, false_misses)
    assert fixed == {field for field in FIXED if not field.startswith(SETTINGS)}
    assert count > 150


LISTS: list[tuple[str, str, Callable[[list[Any]], list[Any]]]] = [
    ("scores", "models", lambda models: models[:-1]),
    ("scores", "models", lambda models: list(reversed(models))),
    ("scores", "data", lambda _: "functions.validation"),
    ("gate", "require", lambda require: require[:1]),
    ("gate", "require", lambda require: [*require, {"metric": "accuracy", "min": 0.1}]),
    ("base", "model", lambda model: {**model, "rms_norm_eps": 1e-5}),
    ("base", "model", lambda model: {k: v for k, v in model.items() if k != "hidden_size"}),
    ("functions", "label", lambda label: {**label, "keep": [*label["keep"], "http"]}),
    ("corpus", "sources", lambda sources: [*sources, {"files": "more/*.py", "name": "more"}]),
]


@pytest.mark.parametrize(("name", "field", "change"), LISTS)
def test_more_less_and_another_order_are_changes(
    quickstart: Quickstart, name: str, field: str, change: Callable[[Any], Any]
) -> None:
    (quickstart.folder / "more").mkdir(exist_ok=True)
    (quickstart.folder / "more/two.py").write_text("2\n")
    data = copy.deepcopy(quickstart.data)
    ((_, params),) = data["stages"][name].items()
    params[field] = change(params[field])
    assert judge(quickstart, quickstart.load(data), name) == ([], [])


def test_init_makes_the_difference_between_teacher_and_scratch(quickstart: Quickstart) -> None:
    """Set alike, the two share one artifact; each is rightly reused for the other."""
    data = copy.deepcopy(quickstart.data)
    for name, init in (("teacher", "random"), ("scratch", "pretrained")):
        data["stages"][name]["finetune"]["init"] = init
    plan = {line.node.name: line for line in make_plan(quickstart.load(data), quickstart.store)}
    before = {line.node.name: line for line in make_plan(quickstart.load(quickstart.data), quickstart.store)}
    assert (plan["teacher"].key, plan["scratch"].key) == (before["scratch"].key, before["teacher"].key)
    assert plan["teacher"].key != plan["scratch"].key
    assert plan["student"].action == "run", "it learns from another teacher now"


def test_a_new_stage_version_runs_its_stages(quickstart: Quickstart) -> None:
    from dataclasses import replace

    pipeline = quickstart.load(quickstart.data)
    node = pipeline.stages["student"]
    pipeline.stages["student"] = replace(node, stage=replace(node.stage, version=node.stage.version + 1))
    assert judge(quickstart, pipeline, "student") == ([], [])


# --- not identity -----------------------------------------------------------------------------------------------------


def test_no_execution_tracking_or_budget_field_runs_anything(quickstart: Quickstart) -> None:
    names = list(quickstart.data["stages"])
    places: list[tuple[type[BaseModel], list[Path_]]] = [
        (TrackingSettings, [("tracking",)]),
        (Budget, [("budget",)]),
        (Execution, [("execution", "default")]),
        (Execution, [("execution", name) for name in names]),
    ]
    count, fixed = 0, set()
    for model, targets in places:
        settings = json.loads(model().model_dump_json())
        for path, info in fields(model, settings):
            value = at(settings, path)
            for other in others(value, info.annotation if info else Any):
                data = copy.deepcopy(quickstart.data)
                for place in targets:
                    target = data
                    for part in (*place, *path[:-1]):
                        target = target.setdefault(part, {})
                    target[path[-1]] = other
                try:
                    pipeline = quickstart.load(data)
                except ConfigError:
                    continue
                assert set(quickstart.actions(pipeline).values()) == {"reuse"}, (model, path)
                count += len(targets)
                break
            else:
                if not isinstance(value, dict):
                    fixed.add(".".join((targets[0][0], *map(str, path))))
    sys.stdout.write(f"{count} execution, tracking and budget fields mutated, 0 stages run\n")
    assert fixed == {field for field in FIXED if field.startswith(SETTINGS)}
    assert count > 150


def test_how_the_file_is_written_runs_nothing(quickstart: Quickstart) -> None:
    text = (quickstart.folder / "quickstart.yaml").read_text()

    def reverse(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: reverse(value[k]) for k in reversed(value)}
        return [reverse(item) for item in value] if isinstance(value, list) else value

    versions = {
        "comments": "# a comment\n\n" + text.replace("\n", "   # another\n\n"),
        "key and stage order": yaml.safe_dump(reverse(yaml.safe_load(text)), sort_keys=False),
        "sorted, block style": yaml.safe_dump(yaml.safe_load(text), default_flow_style=False),
        "JSON": json.dumps(yaml.safe_load(text), indent=3),
        "description": text.replace("description: ", "description: Now, "),
        "numbers": text.replace("learning_rate: 6e-3", "learning_rate: 0.0060"),
    }
    for name, version in versions.items():
        assert version != text
        assert set(quickstart.actions(quickstart.load_text(version)).values()) == {"reuse"}, name


# --- sources, and early cut-off ---------------------------------------------------------------------------------------


def test_content_of_sources_counts_and_nothing_else_of_them(tmp_path: Path) -> None:
    quickstart = build(tmp_path)
    file = tmp_path / "source/asyncio/one.py"

    def plan() -> dict[str, tuple[str, str]]:
        lines = make_plan(quickstart.load_text((tmp_path / "quickstart.yaml").read_text()), quickstart.store)
        return {line.node.name: (line.action, line.reason) for line in lines}

    os.utime(file, (0, 0))
    file.chmod(0o600)
    assert {action for action, _ in plan().values()} == {"reuse"}, "time and mode"
    (tmp_path / "source").rename(tmp_path / "moved")
    (tmp_path / "source").symlink_to(tmp_path / "moved")
    assert {action for action, _ in plan().values()} == {"reuse"}, "place"

    before = file.read_bytes()
    file.write_bytes(before[:-2] + b"2\n")
    for name in ("corpus", "functions"):
        assert plan()[name][0] == "run" and "1 file changed (asyncio/one.py)" in plan()[name][1]
    assert plan()["tokenizer"] == ("unknown", "unknown until corpus")
    file.write_bytes(before)

    (tmp_path / "source/asyncio/two.py").write_text("2\n")
    assert "1 file added (asyncio/two.py)" in plan()["corpus"][1] and plan()["functions"][0] == "run"
    (tmp_path / "source/asyncio/two.py").unlink()

    (tmp_path / "source/http/two.py").write_text("2\n")
    assert plan()["corpus"][0] == "run"
    assert plan()["functions"][0] == "reuse", "http is none of the labels kept"
    (tmp_path / "source/http/two.py").unlink()

    (tmp_path / "source/asyncio/one.py").rename(tmp_path / "source/asyncio/renamed.py")
    assert "1 file added" in plan()["corpus"][1] and "1 file removed" in plan()["corpus"][1]
    (tmp_path / "source/asyncio/renamed.py").rename(tmp_path / "source/asyncio/one.py")
    assert {action for action, _ in plan().values()} == {"reuse"}, "as it was"


def test_equal_bytes_under_a_new_key_stop_the_change_there(tmp_path: Path) -> None:
    quickstart = build(tmp_path)
    quickstart.data["stages"]["tokenizer"]["tokenizer"]["vocab_size"] += 1
    pipeline = quickstart.load(quickstart.data)
    assert quickstart.actions(pipeline)["tokens"] == "unknown"
    corpus = refs.get(quickstart.store, latest_ref(pipeline.name, "corpus"))
    assert corpus is not None
    node = pipeline.stages["tokenizer"]
    commit(quickstart.store, tmp_path, node, resolve(node, {"corpus": corpus.artifact}))
    assert set(quickstart.actions(pipeline).values()) == {"reuse"}
