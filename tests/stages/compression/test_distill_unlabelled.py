"""Distillation without labels: from a classifier on texts that nobody labelled, and of an encoder without a head."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from infra.errors import StageError
from tasks.models.card import ModelCard, read_card, write_card
from tasks.stages import distill, finetune

WORDS = ("red", "green", "blue", "apple", "pear", "plum")
KINDS = ["colour", "fruit"]
CLASSES = {"num_labels": 2, "id2label": dict(enumerate(KINDS)), "label2id": {k: i for i, k in enumerate(KINDS)}}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
SETTINGS = {"learning_rate": 2e-3, "max_steps": 5, "global_batch_size": 8, "seed": 3}
GENERAL = {"alpha": 0.0, "hidden": 1.0, "attention": 1.0}


@pytest.fixture(scope="module")
def inputs(jobs: ModuleType, tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """`teacher`, a classifier; `base`, an encoder without a head; `labelled` and `texts`, the same without labels."""
    made: Path = tmp_path_factory.mktemp("unlabelled")
    tokenizer = tiny.word_tokenizer(WORDS)
    for name, auto, fields in (("teacher", AutoModelForSequenceClassification, CLASSES), ("base", AutoModel, {})):
        given = {"layers": 3, "vocabulary": len(tokenizer), "initializer_range": 0.2, **QUIET, **fields}
        tiny.write_model(made / name, tiny.model("bert", auto, **given), tokenizer, 32)
    write_card(made / "teacher", ModelCard({"name": "text_classification", "pooling": "model"}, 32, KINDS))
    texts = [" ".join(WORDS[(i * 5 + j * j) % 6] for j in range(1 + i % 9)) for i in range(60)]
    rows = [{"text": text, "label": KINDS[WORDS.index(text.split()[0]) // 3]} for text in texts]
    tiny.write_rows(made / "labelled", {"train": rows[20:], "validation": rows[:20]}, labels=KINDS)
    plain = [{"text": text} for text in texts]
    tiny.write_rows(made / "texts", {"train": plain[20:], "validation": plain[:20]})
    types = {"teacher": "model", "base": "model", "labelled": "dataset", "texts": "dataset"}
    return {name: jobs.artifact(made / name, type, stage=name) for name, type in types.items()}


def run(jobs: ModuleType, folder: Path, stage: Any, given: dict[str, Any], **params: Any) -> Any:
    settings = stage.Params.model_validate({**SETTINGS, **{name: name for name in given}, **params})
    job = jobs.make_job(folder, settings, given)
    job.metrics = stage.STAGE.run(job)
    return job


def losses(job: Any) -> list[float]:
    return [json.loads(line)["loss"] for line in (job.records / "train.jsonl").read_text().splitlines()]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("more", [{}, {"hidden": 1.0}, {"alpha": 0.0, "hidden": 1.0}])
def test_texts_without_labels_teach_what_the_same_texts_with_labels_do(
    jobs: ModuleType, inputs: dict[str, Any], tmp_path: Path, more: dict[str, Any]
) -> None:
    """Labels only validate; but with `alpha: 0` they would be the whole loss, which is left out."""
    given = {"layers": 1, "alpha": 1.0, **more}
    of = {"teacher": inputs["teacher"]}
    unlabelled = run(jobs, tmp_path / "u", distill, {**of, "data": inputs["texts"]}, unlabelled=True, **given)
    assert not [name for name in unlabelled.metrics if name.startswith("validation")]
    labelled = run(jobs, tmp_path / "l", distill, {**of, "data": inputs["labelled"]}, **given)
    assert (weights(unlabelled.output) == weights(labelled.output)) == (given["alpha"] == 1)
    ignored = run(jobs, tmp_path / "i", distill, {**of, "data": inputs["labelled"]}, unlabelled=True, **given)
    assert weights(ignored.output) == weights(unlabelled.output)
    assert read_card(unlabelled.output).labels == KINDS


def test_changed_texts_without_labels_are_what_the_teacher_is_asked(
    jobs: ModuleType, inputs: dict[str, Any], tmp_path: Path
) -> None:
    given = {"teacher": inputs["teacher"], "data": inputs["texts"]}
    params = {"layers": 1, "alpha": 1.0, "unlabelled": True}
    plain, changed = (
        run(jobs, tmp_path / str(i), distill, given, **params, augment=augment)
        for i, augment in enumerate((None, {"delete": 0.5}))
    )
    assert losses(plain) != losses(changed)


def test_without_being_told_data_without_labels_are_refused(
    jobs: ModuleType, inputs: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(StageError, match="the dataset has no labels"):
        run(jobs, tmp_path, distill, {"teacher": inputs["teacher"], "data": inputs["texts"]}, layers=1, alpha=1.0)


def test_a_whole_copy_of_an_encoder_has_nothing_to_learn_from_it(
    jobs: ModuleType, inputs: dict[str, Any], tmp_path: Path
) -> None:
    given = {"teacher": inputs["base"], "data": inputs["texts"]}
    job = run(jobs, tmp_path, distill, given, layers=3, max_steps=1, **GENERAL)
    assert losses(job) == pytest.approx([0.0], abs=1e-5)


def test_a_general_student_is_an_encoder_to_fine_tune_and_to_distil_again(
    jobs: ModuleType, inputs: dict[str, Any], tmp_path: Path
) -> None:
    given = {"teacher": inputs["base"], "data": inputs["texts"]}
    job = run(jobs, tmp_path / "general", distill, given, layers=2, **{**GENERAL, "max_steps": 30})
    found = losses(job)
    assert found[-1] < 0.5 * found[0]
    assert read_card(job.output) == ModelCard(None, 32)
    student = AutoModel.from_pretrained(job.output)
    assert student.config.num_hidden_layers == 2
    general = jobs.artifact(job.output, "model", stage="general")

    tuned = run(
        jobs, tmp_path / "tuned", finetune, {"model": general, "data": inputs["labelled"]},
        objective="text_classification", learning_rate=1e-9,
    )  # fmt: skip
    again = run(
        jobs, tmp_path / "again", distill,
        {"teacher": inputs["teacher"], "student": general, "data": inputs["labelled"]}, learning_rate=1e-9,
    )  # fmt: skip
    for made in (tuned, again):  # so slowly that what they began with is still there
        kept = AutoModelForSequenceClassification.from_pretrained(made.output).base_model.state_dict()
        for name, value in student.state_dict().items():
            if "pooler" not in name:
                torch.testing.assert_close(kept[name], value, msg=name)
    assert "validation_f1_macro" in again.metrics


@pytest.mark.parametrize("given", [{}, {"alpha": 0.0}, {"hidden": 1.0}])
def test_an_encoder_without_a_head_has_only_insides(
    jobs: ModuleType, inputs: dict[str, Any], tmp_path: Path, given: dict[str, Any]
) -> None:
    with pytest.raises(StageError, match="trained for no objective, so that only its insides"):
        run(jobs, tmp_path, distill, {"teacher": inputs["base"], "data": inputs["texts"]}, layers=1, **given)


@pytest.mark.parametrize("given", [{}, {"alpha": 0.0}, {"alpha": 0.5, "hidden": 1.0}])
def test_without_labels_no_share_of_the_loss_is_theirs(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="without labels the teacher is all there is"):
        distill.Params.model_validate(
            {"teacher": "t", "data": "d", "unlabelled": True, "layers": 1, "max_steps": 1, **given}
        )
