"""Stored outputs of a teacher: a student learns from them what it would learn from the teacher, which is not asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from infra.errors import StageError
from tasks.compression.distillation import soft_targets as storage
from tasks.compression.distillation.loss import as_teacher
from tasks.compression.distillation.soft_targets import Form, SoftTargets, write_soft_targets
from tasks.losses.distillation import distillation
from tasks.losses.top_k import TopK
from tasks.models.card import ModelCard, write_card
from tasks.objective import objective
from tasks.processors.tokenizer import Tokenizer
from tasks.stages import distill, soft_targets

WORDS = ("red", "green", "blue", "apple", "pear", "plum")
KINDS = ["colour", "fruit"]
CLASSES = {"num_labels": 2, "id2label": dict(enumerate(KINDS)), "label2id": {k: i for i, k in enumerate(KINDS)}}
# Adam divides by the size of a gradient: with a small eps those that are nothing but rounding would be weights.
SETTINGS = {"learning_rate": 2e-3, "max_steps": 4, "global_batch_size": 8, "seed": 3, "optimizer": {"eps": 1e-4}}


@pytest.fixture(scope="module")
def classifier(jobs: ModuleType, tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """`teacher`, a classifier of three layers without dropout, and `data`: 300 texts of one to nine words."""
    made: Path = tmp_path_factory.mktemp("classifier")
    tokenizer = tiny.word_tokenizer(WORDS)
    built = tiny.model(
        "bert", AutoModelForSequenceClassification, layers=3, vocabulary=len(tokenizer), initializer_range=0.2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **CLASSES,
    )  # fmt: skip
    tiny.write_model(made / "teacher", built, tokenizer, 32)
    settings = {"name": "text_classification", "pooling": "model"}
    write_card(made / "teacher", ModelCard(settings, 32, KINDS))
    rows = [
        {"text": " ".join(WORDS[(i * 5 + j * j) % 6] for j in range(1 + i % 9)), "label": KINDS[i % 2]}
        for i in range(320)
    ]
    tiny.write_rows(made / "texts", {"train": rows[20:], "validation": rows[:20]}, labels=KINDS)
    return inputs(jobs, made / "teacher", made / "texts", "dataset")


@pytest.fixture(scope="module")
def writer(
    jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """`teacher`, a decoder of three layers, and `data`: packed rows of several documents."""
    made: Path = tmp_path_factory.mktemp("writer")
    built = tiny.model("llama", AutoModelForCausalLM, layers=3, vocabulary=tiny.VOCABULARY, use_cache=True)
    from tasks.processors.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tiny_inputs / "tokenizer")
    tiny.write_model(made / "teacher", built, tokenizer, 32)
    write_card(made / "teacher", ModelCard({"name": "causal_lm"}, 32))
    return inputs(jobs, made / "teacher", tiny_inputs / "tokens", "tokens")


def inputs(jobs: ModuleType, teacher: Path, data: Path, type: str) -> dict[str, Any]:
    return {
        "teacher": with_digest(jobs.artifact(teacher, "model", stage="teacher"), "a"),
        "data": with_digest(jobs.artifact(data, type, stage="data"), "b"),
    }


def with_digest(artifact: Any, digit: str) -> Any:
    return replace(artifact, manifest=replace(artifact.manifest, digest=digit * 64))


def asked(jobs: ModuleType, folder: Path, given: dict[str, Any], **params: Any) -> Any:
    """The artifact of the stage, with the identity that a run gives it."""
    settings = soft_targets.Params.model_validate({"teacher": "t", "data": "d", **params})
    job = jobs.make_job(folder, settings, given)
    soft_targets.STAGE.run(job)
    entries = [{"field": name, "digest": a.manifest.digest, "split": a.split} for name, a in given.items()]
    made = jobs.artifact(job.output, "soft_targets", stage="softened")
    return replace(made, manifest=replace(made.manifest, identity={"inputs": entries}))


def distilled(jobs: ModuleType, folder: Path, given: dict[str, Any], *, micro: int = 8, **params: Any) -> Any:
    fields = {name: name for name in given}
    settings = distill.Params.model_validate({**SETTINGS, "layers": 1, **fields, **params})
    job = jobs.make_job(folder, settings, given, execution={"per_device_train_batch_size": micro})
    distill.STAGE.run(job)
    return job


def losses(job: Any) -> list[float]:
    return [json.loads(line)["loss"] for line in (job.records / "train.jsonl").read_text().splitlines()]


@contextmanager
def forwards(layers: int) -> Iterator[list[str]]:
    """Names of the classes of models of that many layers, one for each time one is called."""
    found: list[str] = []

    def hook(module: torch.nn.Module, *_: Any) -> None:
        if type(module).__name__.endswith(("ForSequenceClassification", "ForCausalLM")):
            found.extend([type(module).__name__] * (module.config.num_hidden_layers == layers))  # type: ignore[union-attr]

    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    try:
        yield found
    finally:
        handle.remove()


@pytest.mark.parametrize("micro", [8, 2])
@pytest.mark.parametrize("of", ["classifier", "writer"])
def test_the_student_is_the_one_of_a_teacher_that_is_asked_in_every_step(
    jobs: ModuleType, request: pytest.FixtureRequest, tmp_path: Path, of: str, micro: int
) -> None:
    given = request.getfixturevalue(of)
    softened = asked(jobs, tmp_path / "softened", given, dtype="fp32", top_k=None)
    with forwards(3) as of_teacher:
        online = distilled(jobs, tmp_path / "online", given)
    assert len(of_teacher) == SETTINGS["max_steps"]
    with forwards(3) as of_teacher:
        stored = distilled(jobs, tmp_path / "stored", {**given, "soft_targets": softened}, micro=micro)
    assert not of_teacher
    assert losses(stored) == pytest.approx(losses(online), abs=1e-6)
    one, other = (load_file(job.output / "model.safetensors") for job in (online, stored))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=1e-6, rtol=0, msg=name)


def test_half_precision_is_near_and_few_tokens_are_a_little_less(
    jobs: ModuleType, writer: dict[str, Any], tmp_path: Path
) -> None:
    """The divergence over the largest 300 of 320 tokens and the rest is never more than that over all."""
    online = losses(distilled(jobs, tmp_path / "online", writer, alpha=1.0))
    half, cut = (
        losses(distilled(jobs, tmp_path / name, {**writer, "soft_targets": made}, alpha=1.0))
        for name, made in (
            ("half", asked(jobs, tmp_path / "whole", writer, top_k=None)),
            ("cut", asked(jobs, tmp_path / "few", writer, top_k=300)),
        )
    )
    assert half == pytest.approx(online, rel=1e-3) and half != online
    assert all(0.9 * whole < few < whole for few, whole in zip(cut, online, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_loss_of_the_largest_is_a_divergence_over_them_and_the_rest(temperature: float) -> None:
    """Against probabilities written out; over all but one class, which is then the rest, it is the whole loss."""
    student, teacher = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0))
    p, q = ((rows / temperature).softmax(-1) for rows in (teacher, student))
    expected = torch.zeros(())
    for row_p, row_q in zip(p, q, strict=True):
        best = row_p.argsort(descending=True)[:3]
        pairs = [(row_p[i], row_q[i]) for i in best] + [(1 - row_p[best].sum(), 1 - row_q[best].sum())]
        expected = expected + sum(a * (a / b).log() for a, b in pairs)
    found = distillation(student, TopK.of(teacher, 3, temperature), temperature)
    torch.testing.assert_close(found, expected * temperature**2)
    whole = distillation(student, teacher, temperature)
    torch.testing.assert_close(distillation(student, TopK.of(teacher, 8, temperature), temperature), whole)
    assert found < whole


def test_every_example_finds_its_own_rows_whatever_files_they_are_in(
    jobs: ModuleType, writer: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "WINDOW", 8)
    monkeypatch.setattr(storage, "BATCH", 3)
    monkeypatch.setattr(storage, "FILE_NUMBERS", 3000)
    chosen = objective("causal_lm")
    features = list(chosen.bound(Tokenizer(None, 32)).examples(writer["data"], "train"))[:41]
    features[5] = {"input_ids": features[5]["input_ids"][:1]}  # one token foretells nothing: no row
    teacher = as_teacher(AutoModelForCausalLM.from_pretrained(writer["teacher"].path), torch.device("cpu"))
    tmp_path.joinpath("made").mkdir()
    form = Form(torch.float32, 5, 2.0)
    write_soft_targets(tmp_path / "made", teacher, chosen, features, form, lambda done: None)
    stored = SoftTargets(tmp_path / "made")
    assert len(stored) == 41 and len(stored.files) > 2
    for places in ([40, 0, 7], [5, 12], list(range(41))):
        batch = chosen.collate([features[i] for i in places])
        inputs = {name: batch[name] for name in batch if name in ("input_ids", "position_ids")}
        with torch.no_grad():
            rows, _ = chosen.teacher_targets({"logits": teacher(**inputs).logits}, batch)
        expected = TopK.of(rows, 5, 2.0)
        found = stored.of({"example": torch.tensor(places)})
        assert isinstance(found, TopK) and torch.equal(found.ids, expected.ids)
        torch.testing.assert_close(found.logits, expected.logits)
        torch.testing.assert_close(found.rest, expected.rest)


@pytest.mark.parametrize(
    ("field", "change", "says"),
    [
        ("teacher", lambda artifact: with_digest(artifact, "c"), "made of another teacher than 'teacher'"),
        ("data", lambda artifact: with_digest(artifact, "c"), "made of another data than 'data'"),
        ("data", lambda artifact: replace(artifact, split="validation"), "made of another data than 'data'"),
    ],
)
def test_outputs_of_something_else_are_refused(
    jobs: ModuleType, classifier: dict[str, Any], tmp_path: Path, field: str, change: Any, says: str
) -> None:
    softened = asked(jobs, tmp_path / "softened", classifier)
    given = {**classifier, field: change(classifier[field]), "soft_targets": softened}
    with pytest.raises(StageError, match=says):
        distilled(jobs, tmp_path / "job", given)


def test_outputs_that_were_cut_belong_to_one_temperature(
    jobs: ModuleType, writer: dict[str, Any], classifier: dict[str, Any], tmp_path: Path
) -> None:
    cut = asked(jobs, tmp_path / "cut", writer, top_k=4)
    with pytest.raises(StageError, match="cut at temperature 2, and here it is 3"):
        distilled(jobs, tmp_path / "job", {**writer, "soft_targets": cut}, temperature=3.0)
    whole = asked(jobs, tmp_path / "whole", classifier)
    distilled(jobs, tmp_path / "fine", {**classifier, "soft_targets": whole}, temperature=3.0)


def test_outputs_that_do_not_fit_the_number_format_are_refused(
    jobs: ModuleType, tiny: ModuleType, classifier: dict[str, Any], tmp_path: Path
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier["teacher"].path)
    with torch.no_grad():
        model.classifier.bias[0] = 1e5
    tokenizer = tiny.word_tokenizer(WORDS)
    tiny.write_model(tmp_path / "loud", model, tokenizer, 32)
    write_card(tmp_path / "loud", ModelCard({"name": "text_classification", "pooling": "model"}, 32, KINDS))
    given = {**classifier, "teacher": jobs.artifact(tmp_path / "loud", "model")}
    with pytest.raises(StageError, match="no finite numbers in torch"):
        asked(jobs, tmp_path / "half", given)
    asked(jobs, tmp_path / "full", given, dtype="fp32")


@pytest.mark.parametrize(
    ("settings", "auto", "says"),
    [
        ({"name": "masked_lm"}, AutoModelForMaskedLM, "draws again what a model reads"),
        ({"name": "sentence_embedding", "positive": "positive"}, AutoModel, "depend on which examples meet in a batch"),
    ],
)
def test_objectives_without_one_output_for_an_example_are_refused(
    jobs: ModuleType, tiny: ModuleType, tmp_path: Path, settings: dict[str, Any], auto: Any, says: str
) -> None:
    tokenizer = tiny.word_tokenizer(WORDS)
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    tiny.write_model(tmp_path / "m", tiny.model("bert", auto, vocabulary=len(tokenizer)), tokenizer, 32)
    write_card(tmp_path / "m", ModelCard(settings, 32))
    rows = [{"text": "red apple", "positive": "pear"}] * 4
    tiny.write_rows(tmp_path / "d", {"train": rows})
    with pytest.raises(StageError, match=says):
        asked(jobs, tmp_path / "job", inputs(jobs, tmp_path / "m", tmp_path / "d", "dataset"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"hidden": 1.0}, "leave out `hidden`"),
        ({"attention": 1.0}, "leave out `attention`"),
        ({"augment": {"delete": 0.1}}, "leave out `augment`"),
        ({"alpha": 0.0}, "learns from labels alone"),
    ],
)
def test_what_stored_outputs_do_not_hold_cannot_be_asked_for(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        distill.Params.model_validate(
            {"teacher": "t", "data": "d", "soft_targets": "s", "layers": 1, "max_steps": 1, **given}
        )
