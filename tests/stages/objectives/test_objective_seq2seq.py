"""Sequence to sequence: targets and their shift, agreement with T5's and BART's own loss, a training run, all the stages."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from infra.errors import StageError
from tasks.losses.cross_entropy import IGNORED
from tasks.models.inputs import model_inputs
from tasks.objective import objective as named
from tasks.objectives.text.inputs.vocabulary import Vocabulary
from tasks.objectives.text.seq2seq import Seq2Seq
from tasks.processors.special_ids import SpecialIds
from tasks.processors.tokenizer import Tokenizer, load_tokenizer

STEPS = 12
V = 50
VOCABULARY = Vocabulary(V, np.arange(V) < 3, None, 2, np.zeros(0, np.int64))
NUMBERS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "funf", "six": "sechs"}


def features(tiny: ModuleType, count: int = 40) -> list[dict[str, Any]]:
    """Sources of unequal lengths, and targets of other lengths: every second source token, and the end."""
    return [
        {"input_ids": row["input_ids"], "target_ids": np.append(row["input_ids"][::2], 2), "vocabulary": VOCABULARY}
        for row in tiny.lm_features(count, longest=20)
    ]


def dataset(tiny: ModuleType, folder: Path) -> Path:
    """Numbers in English and in German; the test split has sequences that are not in the training split."""
    random = np.random.default_rng(0)
    words = [[str(w) for w in random.choice(list(NUMBERS), random.integers(2, 6))] for _ in range(100)]
    rows = [(" ".join(w), " ".join(NUMBERS[word] for word in w)) for w in words]
    parts = {"train": rows[:80], "validation": rows[80:88], "test": rows[88:]}
    splits = {s: {"text": [r[0] for r in part], "target": [r[1] for r in part]} for s, part in parts.items()}
    made: Path = tiny.write_dataset(folder, splits)
    return made


def test_targets_are_closed_and_cut_and_their_bytes_are_counted(
    jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path, tmp_path: Path
) -> None:
    texts = ["übung", "return self", "", "é" * 50]
    data = jobs.artifact(tiny.write_dataset(tmp_path, {"train": {"text": texts, "german": texts}}), "dataset")
    tokenizer = load_tokenizer(tiny_inputs / "tokenizer")
    assert tokenizer is not None
    chosen = Seq2Seq(target="german", max_target_length=12)
    rows = list(chosen.bound(Tokenizer(tokenizer, 64)).examples(data, "train"))
    for text, row in zip(texts[:3], rows[:3], strict=True):
        assert row["target_ids"].tolist() == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        assert row["target_bytes"] == len(text.encode())
    cut = rows[3]["target_ids"].tolist()
    assert len(cut) == 12 and cut[-1] == tokenizer.eos_token_id and tokenizer.eos_token_id not in cut[:-1]
    assert rows[3]["target_bytes"] in (10, 12), "11 tokens of one byte each spell five characters, and half a sixth"
    assert len(rows[3]["input_ids"]) == 64, "a source is cut by the model's length"
    assert chosen.length(rows[1]) == len(rows[1]["input_ids"]) + len(rows[1]["target_ids"])


def test_a_tokenizer_that_ends_texts_itself_ends_them_once(
    jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path, tmp_path: Path
) -> None:
    from tokenizers.processors import TemplateProcessing

    data = jobs.artifact(tiny.write_dataset(tmp_path, {"train": {"text": ["a b"], "target": ["c d"]}}), "dataset")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_inputs / "tokenizer")
    plain = Seq2Seq().bound(Tokenizer(tokenizer, 64)).examples(data, "train")[0]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 2)])
    closed = Seq2Seq().bound(Tokenizer(tokenizer, 64)).examples(data, "train")[0]
    assert closed["target_ids"].tolist() == plain["target_ids"].tolist()
    assert closed["input_ids"].tolist() == [*plain["input_ids"].tolist(), 2]


def test_a_batch_by_hand() -> None:
    rows = [
        {"input_ids": np.array([5, 6, 7]), "target_ids": np.array([8, 2]), "target_bytes": 3, "vocabulary": VOCABULARY},
        {"input_ids": np.array([9]), "target_ids": np.array([4, 4, 2]), "target_bytes": 5, "vocabulary": VOCABULARY},
    ]
    batch = Seq2Seq().bound(config=SimpleNamespace(pad_token_id=1, decoder_start_token_id=3)).collate(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [9, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[8, 2, IGNORED], [4, 4, 2]]
    assert batch["decoder_input_ids"].tolist() == [[3, 8, 1], [3, 4, 4]]
    assert batch["target_bytes"].tolist() == [3, 5]
    assert Seq2Seq().units(batch) == 5 and Seq2Seq().work(batch) == 9


@pytest.mark.parametrize("type", ["t5", "bart"])
def test_loss_is_the_models_own_and_padding_changes_nothing(tiny: ModuleType, type: str) -> None:
    """The model shifts the labels itself here: another start token, or no shift, would show."""
    model, chosen = tiny.model(type, AutoModelForSeq2SeqLM), features(tiny, 6)
    objective = Seq2Seq().bound(config=model.config)
    assert objective.special.decoder_start == {"t5": 0, "bart": 2}[type]
    batch = objective.collate(chosen)
    with torch.no_grad():
        own = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"])
        output = model(**model_inputs(batch, model)).logits
        total, units = Seq2Seq().loss({"logits": output}, batch)
        torch.testing.assert_close(total / units, own.loss)
        for row, feature in enumerate(chosen):
            alone = model(**model_inputs(objective.collate([feature]), model)).logits[0]
            torch.testing.assert_close(output[row, : len(alone)], alone, atol=1e-5, rtol=0)
    kept = Seq2Seq().predictions({"logits": output.numpy()}, {name: value.numpy() for name, value in batch.items()})
    assert kept["nll"].sum() == pytest.approx(float(total), rel=1e-5) and kept["tokens"].sum() == units
    assert "bytes" not in kept
    twice = Seq2Seq().distillation_loss({"logits": output}, {"logits": output + 1}, batch, 2.0)
    assert float(twice) == pytest.approx(0, abs=1e-3)


def test_label_smoothing_by_hand() -> None:
    """0.9 of the weight on the target, 0.1 spread over both tokens: 0.95 and 0.05."""
    logits = torch.tensor([[[3.0, 1.0], [0.0, 0.0]]]).log()
    batch = {"labels": torch.tensor([[0, IGNORED]])}
    total, units = Seq2Seq(label_smoothing=0.1).loss({"logits": logits}, batch)
    assert units == 1
    assert float(total) == pytest.approx(-0.95 * math.log(0.75) - 0.05 * math.log(0.25))
    kept = Seq2Seq(label_smoothing=0.1).predictions({"logits": logits.numpy()}, {"labels": batch["labels"].numpy()})
    assert kept["nll"][0] == pytest.approx(-math.log(0.75)), "the metric is not smoothed"


def test_metrics_under_weights() -> None:
    kept = {"nll": [2.0, 9.0], "tokens": [1, 3], "correct": [1, 0], "bytes": [4, 5]}
    found = Seq2Seq().metrics({k: np.array(v) for k, v in kept.items()}, np.array([[1.0, 1.0], [2.0, 1.0]]))
    assert found["cross_entropy"] == pytest.approx([11 / 4, 13 / 5])
    assert found["perplexity"] == pytest.approx(np.exp([11 / 4, 13 / 5]))
    assert found["accuracy"] == pytest.approx([1 / 4, 2 / 5])
    assert found["bits_per_byte"] == pytest.approx(np.array([11 / 9, 13 / 13]) / math.log(2))


def test_the_baseline_by_hand() -> None:
    """Targets seen: 4 4 5 2, add-half over ids 0 to 5; wanted: 4 2."""
    seen = [{"target_ids": np.array([4, 4, 5, 2])}]
    found = Seq2Seq().baselines(seen, [{"target_ids": np.array([4, 2])}])
    assert found == {"unigram": pytest.approx(-(math.log(2.5 / 7) + math.log(1.5 / 7)) / 2)}


@pytest.mark.parametrize(("type", "micro"), [("t5", 2), ("bart", 4)])
def test_parity_with_a_bare_loop_over_the_models_own_loss(parity: Any, tiny: ModuleType, type: str, micro: int) -> None:
    """Targets differ in length, so a mean of means would show."""
    quiet = {"dropout_rate": 0.0} if type == "t5" else {"dropout": 0.0}
    fresh = lambda: tiny.model(type, AutoModelForSeq2SeqLM, **quiet)  # noqa: E731
    parity(Seq2Seq(), features(tiny), fresh, micro=micro, falls=0.3)


def save_base(tiny: ModuleType, tiny_inputs: Path, folder: Path) -> Path:
    """A T5 with random weights as a `model` artifact."""
    from tasks.models.card import ModelCard
    from tasks.models.loading import save_model

    model = tiny.model("t5", AutoModelForSeq2SeqLM, vocabulary=tiny.VOCABULARY, dropout_rate=0.0)
    folder.mkdir()
    save_model(model, folder, processor=Tokenizer.load(tiny_inputs / "tokenizer", 64), card=ModelCard(None, 64))
    return folder


def test_the_stages(jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path, tmp_path: Path) -> None:
    """finetune T5 to translate numbers, then distill, prune, export, quantize, evaluate and gate."""
    data = jobs.artifact(dataset(tiny, tmp_path / "dataset"), "dataset", stage="numbers")
    base = jobs.artifact(save_base(tiny, tiny_inputs, tmp_path / "base"), "model")
    metrics = jobs.run_stage(
        tmp_path / "teacher",
        "finetune",
        {
            "model": "base",
            "data": "numbers",
            "objective": {"name": "seq2seq", "max_target_length": 40, "label_smoothing": 0.05},
            "learning_rate": 1e-2,
            "max_steps": 150,
            "global_batch_size": 16,
        },
        model=base,
        data=data,
    )
    assert metrics["validation_cross_entropy"] < 0.5 * metrics["baseline_unigram"]
    assert metrics["validation_loss"] > metrics["validation_cross_entropy"], "the loss is smoothed"
    shown = json.loads((tmp_path / "teacher/records/samples.json").read_text())
    words = {word for sample in shown for word in sample["prediction"].split()}
    assert len(shown) == 4 and set(NUMBERS.values()) & words, "it writes German numbers"
    assert all("<eos>" not in s["prediction"] and "<pad>" not in s["prediction"] for s in shown)
    teacher = jobs.artifact(tmp_path / "teacher/output", "model", stage="teacher")
    budget = {"learning_rate": 5e-3, "max_steps": 60, "global_batch_size": 16}
    given = {"teacher": "teacher", "data": "numbers", "layers": 1, **budget}
    jobs.run_stage(tmp_path / "student", "distill", given, teacher=teacher, data=data)
    config = json.loads((tmp_path / "student/output/config.json").read_text())
    assert (config["num_layers"], config["num_decoder_layers"]) == (1, 1)
    pruned = {"model": "teacher", "data": "numbers", "keep": 0.5, "samples": 24, "heal": {**budget, "max_steps": 5}}
    assert jobs.run_stage(tmp_path / "lean", "prune", pruned, model=teacher, data=data)["parameters_ratio"] < 1
    assert json.loads((tmp_path / "lean/output/config.json").read_text())["d_ff"] == 32
    student = jobs.artifact(tmp_path / "student/output", "model", stage="student")
    assert jobs.run_stage(tmp_path / "onnx", "export", {"model": "student"}, model=student)["max_abs_diff"] < 1e-4
    onnx = jobs.artifact(tmp_path / "onnx/output", "onnx", stage="onnx")
    jobs.run_stage(tmp_path / "int8", "quantize", {"model": "onnx"}, model=onnx)
    models = [teacher, student, onnx, jobs.artifact(tmp_path / "int8/output", "onnx", stage="int8")]
    asked = {"models": [m.stage for m in models], "data": "numbers", "resamples": 100, "latency": {"repeats": 2}}
    jobs.run_stage(tmp_path / "scores", "evaluate", asked, models=models, data=data)
    scores = json.loads((tmp_path / "scores/output/scores.json").read_text())
    values = {name: found["metrics"]["cross_entropy"]["value"] for name, found in scores["models"].items()}
    assert values["teacher"] < 0.5 * scores["baselines"]["unigram"]
    assert values["onnx"] == pytest.approx(values["student"], abs=1e-4)
    assert values["int8"] == pytest.approx(values["student"], rel=0.15)
    found = scores["models"]["teacher"]["metrics"]["bits_per_byte"]
    assert 0 < found["value"] < 8 and not found["greater_is_better"]
    require = [{"metric": "bits_per_byte", "max": found["value"] + 1e-6}, {"metric": "accuracy", "min": 0.3}]
    source = jobs.artifact(tmp_path / "scores/output", "scores")
    judged = {"scores": "scores", "candidate": "teacher", "require": require}
    assert jobs.run_stage(tmp_path / "gate", "gate", judged, scores=source)["met"] == 2


@pytest.mark.parametrize("type", ["t5", "bart"])
def test_samples_are_what_the_likeliest_tokens_spell(
    jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path, tmp_path: Path, type: str
) -> None:
    """Token by token without a cache, as the model was trained: a wrong start, or a source cut by padding, would show."""
    tokenizer = load_tokenizer(tiny_inputs / "tokenizer")
    rows = (
        Seq2Seq()
        .bound(Tokenizer(tokenizer, 64))
        .examples(jobs.artifact(dataset(tiny, tmp_path), "dataset"), "validation")
    )
    # Without tying: a fresh BART would name the token it reads, which is the end of a text.
    model = tiny.model(type, AutoModelForSeq2SeqLM, vocabulary=tiny.VOCABULARY, tie_word_embeddings=False)
    shown = Seq2Seq().bound(Tokenizer(tokenizer, 512), config=model.config).samples(model, rows)
    assert len({sample["prediction"] for sample in shown}) > 1
    for sample, place in zip(shown, np.linspace(0, len(rows) - 1, 4).astype(int), strict=True):
        written = [SpecialIds.of(model.config).decoder_start]
        source = torch.from_numpy(rows[int(place)]["input_ids"].astype(np.int64))[None]
        while len(written) < 64 and (len(written) == 1 or written[-1] != 2):
            with torch.no_grad():
                scores = model(input_ids=source, decoder_input_ids=torch.tensor([written])).logits[0, -1]
            written.append(int(scores.argmax()))
        assert sample["prediction"][:20] == tokenizer.decode(written[1:], skip_special_tokens=True)[:20]
        assert sample["truth"] == tokenizer.decode(rows[int(place)]["target_ids"], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({}, "has no column 'target'"),
        ({"target": ["x", None, None]}, "holds no text in 2 rows, the first being row 1: None"),
        ({"target": [1, 2, 3]}, "holds no text in 3 rows, the first being row 0: 1"),
    ],
)
def test_data_without_targets_are_refused(
    jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path, tmp_path: Path, columns: dict[str, Any], says: str
) -> None:
    made = tiny.write_dataset(tmp_path / "d", {"train": {"text": ["a", "b", "c"], **columns}})
    with pytest.raises(StageError, match=says) as caught:
        data = jobs.artifact(made, "dataset", stage="numbers")
        Seq2Seq().bound(Tokenizer(load_tokenizer(tiny_inputs / "tokenizer"), 16)).examples(data, "train")
    assert caught.value.where == "numbers"
    assert ("`columns`" if not columns else "`string`") in str(caught.value), "it says where targets come from"


def test_a_tokenizer_that_cannot_end_a_text_is_refused(
    jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path, tmp_path: Path
) -> None:
    data = jobs.artifact(tiny.write_dataset(tmp_path, {"train": {"text": ["a"], "target": ["b"]}}), "dataset")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_inputs / "tokenizer", eos_token=None)
    with pytest.raises(StageError, match="no end-of-text token"):
        Seq2Seq().bound(Tokenizer(tokenizer, 16)).examples(data, "train")


def test_its_options_are_read_from_a_pipeline() -> None:
    found = named({"name": "seq2seq", "target": "german", "label_smoothing": 0.1})
    assert isinstance(found, Seq2Seq) and found.target == "german"
    assert tuple(found.inputs) == ("input_ids", "attention_mask", "decoder_input_ids")
