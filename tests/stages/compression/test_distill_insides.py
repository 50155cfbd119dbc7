"""What a student learns of its teacher's insides: against a bare loop, over micro-batches and ZeRO, into plain files."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification

from infra.errors import StageError
from tasks.compression.distillation.loss import attention_distance, hidden_distance
from tasks.compression.distillation.student import student_from
from tasks.models.card import ModelCard, read_card, write_card
from tasks.objective import objective
from tasks.processors.tokenizer import Tokenizer, load_tokenizer
from tasks.stages import distill
from tasks.training.engine.batch import BatchSplit
from tasks.training.loop.sampler import Sampler

WORDS = ("red", "green", "blue", "apple", "pear", "plum", "dog", "cat", "cow", "runs", "sits", "eats")
KINDS = ["animal", "colour", "fruit", "verb"]
CLASSES = {"num_labels": 4, "id2label": dict(enumerate(KINDS)), "label2id": {k: i for i, k in enumerate(KINDS)}}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
STEPS = 4


@pytest.fixture(scope="module")
def folder(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`teacher` of three layers that knows four classes, `narrow` and `other`: students; `texts` of one to nine words."""
    made: Path = tmp_path_factory.mktemp("insides")
    tokenizer = tiny.word_tokenizer(WORDS)
    card = {"name": "text_classification", "pooling": "model"}

    def model(name: str, auto: Any, **fields: Any) -> None:
        built = tiny.model("bert", auto, vocabulary=len(tokenizer), **QUIET, **fields)
        tiny.write_model(made / name, built, tokenizer, 32)

    model("teacher", AutoModelForSequenceClassification, layers=3, initializer_range=0.2, **CLASSES)
    write_card(made / "teacher", ModelCard(card, 32, KINDS))
    model("narrow", AutoModel, layers=2, hidden_size=16)
    model("heads", AutoModel, layers=2, num_attention_heads=4)
    model("labels", AutoModelForSequenceClassification, layers=2, num_labels=4)
    write_card(made / "labels", ModelCard(card, 32, KINDS[::-1]))
    other = tiny.word_tokenizer([*WORDS, "horse"])
    tiny.write_model(made / "words", tiny.model("bert", AutoModel, vocabulary=len(other)), other, 32)

    def row(i: int) -> dict[str, str]:
        words = [WORDS[(i * 5 + j * j) % 12] for j in range(1 + i % 9)]
        return {"text": " ".join(words), "label": ("colour", "fruit", "animal", "verb")[WORDS.index(words[0]) // 3]}

    rows = [row(i) for i in range(52)]
    tiny.write_rows(made / "texts", {"train": rows[12:], "validation": rows[:12]}, labels=KINDS)
    return made


def distilled(jobs: ModuleType, folder: Path, place: Path, given: dict[str, Any], **job: Any) -> Any:
    plain = {"schedule": {"name": "constant", "warmup_ratio": 0.0}, "learning_rate": 1e-3, "seed": 3}
    budget = {"max_steps": STEPS, "global_batch_size": 8}
    params = distill.Params.model_validate({"teacher": "t", "data": "d", **plain, **budget, **given})
    inputs = {"teacher": jobs.artifact(folder / "teacher", "model"), "data": jobs.artifact(folder / "texts", "dataset")}
    if params.student:
        inputs["student"] = jobs.artifact(folder / params.student, "model", stage=params.student)
    made = jobs.make_job(place, params, inputs, **job)
    made.metrics = distill.STAGE.run(made)
    return made


def losses(job: Any) -> list[float]:
    return [json.loads(line)["loss"] for line in (job.records / "train.jsonl").read_text().splitlines()]


def test_the_distance_of_layers_is_that_of_directions() -> None:
    """(3, 4) and (8, 6) have a cosine of 24/25: squared distance 2 - 48/25; twice as long a vector is as near."""
    one, two = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[8.0, 6.0], [5.0, 0.0]])
    torch.testing.assert_close(hidden_distance(one, two), torch.tensor(2 - 48 / 25))
    torch.testing.assert_close(hidden_distance(7 * one, two), hidden_distance(one, two))


def test_the_distance_of_attention_counts_real_rows_once_for_all_heads() -> None:
    even, sharp = torch.full((1, 2, 2, 2), 0.5), torch.eye(2).expand(1, 2, 2, 2).clone()
    found = attention_distance(even, sharp, torch.tensor([[True, False]]))
    torch.testing.assert_close(found, torch.tensor(0.5))  # (1/2)^2 + (1/2)^2


def reference(jobs: ModuleType, folder: Path, params: distill.Params) -> list[float]:
    """A bare torch loop over whole batches, insides by `output_hidden_states` and `output_attentions`."""
    chosen = objective({"name": "text_classification", "pooling": "model"}).bound(labels=KINDS)
    features = chosen.bound(Tokenizer(load_tokenizer(folder / "teacher"), 32)).examples(
        jobs.artifact(folder / "texts", "dataset"), "train"
    )
    teacher = AutoModelForSequenceClassification.from_pretrained(folder / "teacher", attn_implementation="eager").eval()
    student = student_from(teacher, 2)
    student.set_attn_implementation("eager")
    decayed = [p for p in student.parameters() if p.ndim >= 2]
    rest = [p for p in student.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0}], 1e-3
    )
    found = []
    for step in range(STEPS):
        places = Sampler(len(features), 3, BatchSplit(8, 1, 8)).global_batch(step)
        batch = chosen.bound(config=teacher.config).collate([features[i] for i in places])
        inputs = {n: batch[n] for n in ("input_ids", "attention_mask")}
        own, given = (
            m(**inputs, output_hidden_states=True, output_attentions=True) for m in (student.train(), teacher)
        )
        mask, t = batch["attention_mask"] == 1, params.temperature
        soft = torch.nn.functional.kl_div(
            (own.logits / t).log_softmax(-1), (given.logits / t).log_softmax(-1).detach(), reduction="batchmean",
            log_target=True,
        ) * t * t  # fmt: skip
        hard = torch.nn.functional.cross_entropy(own.logits, batch["labels"])
        pairs = [(1, 1), (2, 3)]  # after layers 0 and 1 of the student: after 0 and 2 of the teacher
        cosines = [
            torch.cosine_similarity(own.hidden_states[a][mask], given.hidden_states[b][mask], dim=-1) for a, b in pairs
        ]
        apart = own.attentions[-1] - given.attentions[-1]
        loss = params.alpha * soft + (1 - params.alpha) * hard
        loss = loss + params.hidden * torch.stack([2 - 2 * c for c in cosines]).mean()
        loss = loss + params.attention * apart.square().sum(-1).mean(1)[mask].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize("micro", [8, 2])
@pytest.mark.parametrize("zero", [0, 2])
@pytest.mark.parametrize(
    "given", [{"hidden": 2.0}, {"attention": 3.0}, {"hidden": 1.0, "attention": 1.0, "alpha": 0.0}]
)
def test_equals_a_bare_loop_whatever_the_micro_batches(
    jobs: ModuleType, folder: Path, tmp_path: Path, given: dict[str, Any], micro: int, zero: int
) -> None:
    """Texts differ in length: a mean of micro-batch means over tokens would differ."""
    execution = {"per_device_train_batch_size": micro, "zero_stage": zero, "offload_optimizer": bool(zero)}
    job = distilled(jobs, folder, tmp_path, {"layers": 2, **given}, execution=execution)
    assert losses(job) == pytest.approx(reference(jobs, folder, job.params), abs=2e-5)


@pytest.mark.parametrize("zero", [0, 3])
def test_a_student_of_another_width_learns_through_a_projection_that_does_not_ship(
    jobs: ModuleType, folder: Path, tmp_path: Path, zero: int
) -> None:
    execution = {"zero_stage": zero, "offload_optimizer": bool(zero)}
    given = {"student": "narrow", "hidden": 5.0, "alpha": 0.0, "max_steps": 30, "learning_rate": 5e-3}
    job = distilled(jobs, folder, tmp_path, given, execution=execution)
    assert not [name for name in load_file(job.output / "model.safetensors") if "to_teacher" in name]
    model = AutoModelForSequenceClassification.from_pretrained(job.output)
    assert model.config.hidden_size == 16 and model.config.id2label == dict(enumerate(KINDS))
    found = losses(job)
    assert all(math.isfinite(loss) for loss in found) and found[-1] < 0.8 * found[0]


def test_the_student_attends_as_fast_as_its_teacher_once_it_is_made(
    jobs: ModuleType, folder: Path, tmp_path: Path
) -> None:
    job = distilled(jobs, folder, tmp_path, {"layers": 2, "attention": 1.0})
    config = json.loads((job.output / "config.json").read_text())
    assert "attn_implementation" not in json.dumps(config)
    assert AutoModelForSequenceClassification.from_pretrained(job.output).config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"student": "words"}, "the student has another vocabulary than its teacher"),
        ({"student": "labels"}, "a head for 4 classes without names of their own"),
        ({"student": "heads", "attention": 1.0}, "the student has 4 attention heads, its teacher 2"),
    ],
)
def test_students_that_do_not_fit_are_refused(
    jobs: ModuleType, folder: Path, tmp_path: Path, given: dict[str, Any], says: str
) -> None:
    with pytest.raises(StageError, match=says):
        distilled(jobs, folder, tmp_path, given)


def test_data_that_number_the_labels_otherwise_are_numbered_as_the_teacher_does(
    jobs: ModuleType, tiny: ModuleType, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "teacher").symlink_to(folder / "teacher")
    rows = [{"text": "red", "label": kind} for kind in KINDS] * 2
    tiny.write_rows(tmp_path / "texts", {"train": rows, "validation": rows}, labels=KINDS[::-1])
    objective = read_card(folder / "teacher").objective
    features = objective.bound(Tokenizer(load_tokenizer(folder / "teacher"), 32)).examples(
        jobs.artifact(tmp_path / "texts", "dataset"), "train"
    )
    assert [feature["label"] for feature in features] == [0, 1, 2, 3] * 2
    assert read_card(distilled(jobs, tmp_path, tmp_path / "job", {"layers": 1}).output).labels == KINDS
    shutil.rmtree(tmp_path / "texts")
    tiny.write_rows(tmp_path / "texts", {"train": rows, "validation": rows}, labels=[*KINDS, "more"])
    with pytest.raises(StageError, match="knows the labels"):
        distilled(jobs, tmp_path, tmp_path / "other", {"layers": 1})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "exactly one of `layers` and `student`"),
        ({"layers": 1, "student": "s"}, "exactly one of `layers` and `student`"),
        ({"layers": 1, "hidden": 1.0, "r_drop": 1.0}, "`r_drop` passes twice"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        distill.Params.model_validate({"teacher": "t", "data": "d", "max_steps": 1, **given})
