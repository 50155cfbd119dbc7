"""A classifier that goes on learning, or is judged as it is: each class keeps the row that it has by its name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from infra.errors import StageError
from tasks.models.card import ModelCard, read_card, write_card
from tasks.models.head_rows import matched
from tasks.models.loading import load_model
from tasks.objective import class_head
from tasks.processors.tokenizer import load_tokenizer
from tasks.stages import pretrained

OBJECTIVE = {"name": "text_classification", "pooling": "mean"}


def classifier(
    tiny: ModuleType, folder: Path, type: str, auto: Any, labels: Sequence[str] | None, count: int = 2
) -> dict[str, torch.Tensor]:
    """Saves one; returns its weights. labels: names of its classes; None: as transformers calls them."""
    fields = {"num_labels": count} if labels is None else class_head(labels)
    model = tiny.model(type, auto, vocabulary=tiny.VOCABULARY, **fields)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("classifier", "score")):
                parameter.normal_()
    model.save_pretrained(folder)
    found: dict[str, torch.Tensor] = model.state_dict()
    return found


@pytest.mark.parametrize(
    ("type", "auto", "rows"),
    [
        ("bert", "AutoModelForTokenClassification", ["classifier.weight", "classifier.bias"]),
        ("roberta", "AutoModelForSequenceClassification", ["classifier.out_proj.weight", "classifier.out_proj.bias"]),
        ("llama", "AutoModelForSequenceClassification", ["score.weight"]),
    ],
)
def test_rows_follow_the_names(tiny: ModuleType, tmp_path: Path, type: str, auto: str, rows: list[str]) -> None:
    import transformers

    before = classifier(tiny, tmp_path, type, getattr(transformers, auto), ["b", "c"])
    for wanted in (["b", "c"], ["c", "b"], ["a", "b", "c"], ["c", "d", "b"]):
        torch.manual_seed(1)
        after = load_model(tmp_path, auto, **class_head(wanted))
        torch.manual_seed(1)
        again = load_model(tmp_path, auto, **class_head(wanted)).state_dict()
        assert list(after.config.id2label.values()) == wanted
        for name in rows:
            found = after.state_dict()[name]
            for place, label in enumerate(wanted):
                if label in ("b", "c"):
                    assert torch.equal(found[place], before[name][["b", "c"].index(label)]), (wanted, label, name)
            assert len(found) == len(wanted) and torch.equal(found, again[name]), "new rows are the seed's"
        for name in before.keys() - set(rows):
            assert torch.equal(after.state_dict()[name], before[name])


@pytest.mark.parametrize(
    ("own", "rows", "wanted", "says"),
    [
        (["b", "c"], 2, ["x", "y"], r"knows classes that the data do not have: 'b', 'c'; the data have 'x', 'y'"),
        (["b", "c"], 2, ["a", "b"], r"do not have: 'c'"),
        (["LABEL_0", "LABEL_1"], 2, ["b", "c"], r"a head for 2 classes without names of their own"),
        (["LABEL_0", "LABEL_1"], 3, ["b", "c"], r"a head for 3 classes without names"),
        (["LABEL_0"], 1, ["b", "c"], r"a head for one number, and the data have the classes 'b', 'c'"),
        (["b", "b"], 2, ["b", "c"], r"without names of their own"),
    ],
)
def test_classes_that_cannot_be_matched_are_refused(own: list[str], rows: int, wanted: list[str], says: str) -> None:
    with pytest.raises(StageError, match=says) as caught:
        matched(own, rows, wanted)
    assert "new_head: true" in str(caught.value)


def test_the_data_may_call_classes_as_transformers_does() -> None:
    assert matched(["LABEL_0", "LABEL_1"], 2, ["LABEL_1", "LABEL_0"]) == [1, 0]
    assert matched(["LABEL_0", "LABEL_1"], 2, ["LABEL_0", "LABEL_1", "other"]) == [0, 1, None]


def test_a_new_head_and_a_number_need_no_names(tiny: ModuleType, tmp_path: Path) -> None:
    classifier(tiny, tmp_path, "bert", AutoModelForTokenClassification, None)
    load_model(tmp_path, "AutoModelForTokenClassification", new_head=True, **class_head(["x", "y"]))
    with pytest.raises(StageError, match="without names"):
        load_model(tmp_path, "AutoModelForTokenClassification", **class_head(["x", "y"]))
    with pytest.raises(StageError, match=r"classifier\.bias is 2, not 1"):
        load_model(tmp_path, "AutoModelForTokenClassification", num_labels=1)


@pytest.fixture(scope="module")
def world(tiny: ModuleType, tiny_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`base`: a classifier of b and c that is right about every text of `texts(labels)`, however these are numbered."""
    folder = tmp_path_factory.mktemp("rows")
    classifier(tiny, folder / "given", "bert", AutoModelForTokenClassification, ["b", "c"])
    for file in (tiny_inputs / "tokenizer").iterdir():
        (folder / "given" / file.name).write_bytes(file.read_bytes())
    model = AutoModelForTokenClassification.from_pretrained(folder / "given")
    tokenizer: Any = load_tokenizer(folder / "given")
    texts = [f"{a} {b} {c}" for a in ("red", "def", "x") for b in ("1", "self", "zoo") for c in ("!", "end", "None")]
    with torch.no_grad():
        given = [tokenizer(text, return_tensors="pt", return_token_type_ids=False) for text in texts]
        scores = torch.cat([model(**one).logits.mean(1) for one in given])
        between = (scores[:, 0] - scores[:, 1]).sort().values[12:14].mean()
        model.classifier.bias += torch.tensor([20.0 - between, 20.0])  # a row that is drawn again stays below both
    model.save_pretrained(folder / "given")
    rows = [
        {"text": text, "label": "b" if one[0] - between > one[1] else "c"}
        for text, one in zip(texts, scores, strict=True)
    ]
    assert {row["label"] for row in rows} == {"b", "c"}

    def data(labels: Sequence[str]) -> Path:
        place: Path = folder / "-".join(labels)
        if not place.exists():
            tiny.write_rows(place, dict.fromkeys(("train", "validation", "test"), rows), labels=list(labels))
        return place

    return type("World", (), {"given": folder / "given", "data": staticmethod(data)})


def scored(jobs: ModuleType, place: Path, data: Path, *models: Any) -> dict[str, Any]:
    given = {"models": ["m"], "data": "d", "resamples": 100, "latency": {"repeats": 2, "max_seconds": 0.02}}
    test = jobs.artifact(data, "dataset", stage="data", split="test")
    jobs.run_stage(place, "evaluate", given, models=list(models), data=test)
    found: dict[str, Any] = json.loads((place / "output/scores.json").read_text())
    return found


@pytest.mark.parametrize("labels", [["b", "c"], ["c", "b"], ["a", "b", "c"]], ids=lambda labels: "".join(labels))
def test_what_is_right_stays_right_when_training_goes_on(
    jobs: ModuleType, world: Any, tmp_path: Path, labels: list[str]
) -> None:
    """1.0 -> 1.0: `ref:...-weights or base`, where the classes are numbered otherwise, or a new one sorts first."""
    base = tmp_path / "base"
    write_card(base_copy(world.given, base), ModelCard(OBJECTIVE, 32, ["b", "c"]))
    given = {"model": "m", "data": "d", "objective": OBJECTIVE, "max_steps": 1, "learning_rate": 1e-9}
    inputs = {"model": jobs.artifact(base, "model"), "data": jobs.artifact(world.data(labels), "dataset")}
    metrics = jobs.run_stage(tmp_path / "tuned", "finetune", given, **inputs)
    assert metrics["validation_accuracy"] == 1.0
    assert read_card(tmp_path / "tuned/output").labels == labels


def base_copy(folder: Path, target: Path) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_a_given_classifier_is_judged_and_exported_as_it_is(jobs: ModuleType, world: Any, tmp_path: Path) -> None:
    job = jobs.make_job(tmp_path / "job", pretrained.Params(folder=str(world.given), objective=OBJECTIVE))
    pretrained.run(job)
    assert read_card(job.output).labels == ["b", "c"]
    jobs.run_stage(tmp_path / "onnx", "export", {"model": "m"}, model=jobs.artifact(job.output, "model"))
    other = base_copy(job.output, tmp_path / "other")  # the same, with its classes in another order
    load_model(other, "AutoModelForTokenClassification", **class_head(["c", "b"])).save_pretrained(other)
    write_card(other, ModelCard(OBJECTIVE, 32, ["c", "b"]))
    models = [
        jobs.artifact(other, "model", stage="other"),
        jobs.artifact(job.output, "model", stage="given"),
        jobs.artifact(tmp_path / "onnx/output", "onnx", stage="onnx"),
    ]
    found = scored(jobs, tmp_path / "scores", world.data(["b", "c"]), *models)
    values = {name: one["metrics"] for name, one in found["models"].items()}
    assert [values[m.stage]["accuracy"]["value"] for m in models] == [1.0, 1.0, 1.0]
    assert found["labels"] == ["c", "b"] and len({values[m.stage]["f1@b"]["value"] for m in models}) == 1
    samples = json.loads((tmp_path / "scores/records/samples.json").read_text())
    assert all(one["truth"] == one["prediction"] for name in ("other", "given") for one in samples[name])


def test_a_given_classifier_is_read_as_it_was_trained(
    jobs: ModuleType, tiny: ModuleType, world: Any, tmp_path: Path
) -> None:
    folder = base_copy(world.given, tmp_path / "cls")
    classifier(tiny, folder, "bert", AutoModelForSequenceClassification, ["b", "c"])
    with pytest.raises(StageError, match="the head is that of a BertForSequenceClassification, and this") as caught:
        pretrained.run(jobs.make_job(tmp_path / "a", pretrained.Params(folder=str(folder), objective=OBJECTIVE)))
    assert "pooling: model" in str(caught.value)
    right = {"name": "text_classification", "pooling": "model"}
    pretrained.run(jobs.make_job(tmp_path / "b", pretrained.Params(folder=str(folder), objective=right)))
    assert read_card(tmp_path / "b/output").labels == ["b", "c"]
    with pytest.raises(StageError, match=r"the files lack 2 weights of a BertForQuestionAnswering: qa_outputs\.bias"):
        pretrained.run(
            jobs.make_job(tmp_path / "c", pretrained.Params(folder=str(folder), objective="question_answering"))
        )
