"""Denoising: spans left out and put back, agreement with T5's own loss, a training run, and all the stages."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSeq2SeqLM

from infra.errors import StageError
from tasks.models.inputs import model_inputs
from tasks.objective import objective
from tasks.objectives.text.denoising import Denoising
from tasks.objectives.text.inputs.span_corruption import corrupted, noise_shape
from tasks.objectives.text.inputs.vocabulary import Vocabulary
from tasks.processors.tokenizer import Tokenizer, load_tokenizer
from tasks.training.loop.features import heldout_examples

STEPS = 12
V, SENTINELS = 60, 8
VOCABULARY = Vocabulary(V, (np.arange(V) < 3) | (np.arange(V) >= V - SENTINELS), None, 2, np.arange(V - 1, V - 9, -1))


def corrupt(ids: Any, seed: int = 0, density: float = 0.15, mean_span: float = 3.0) -> tuple[list[int], list[int]]:
    read, written = corrupted(
        np.asarray(ids), VOCABULARY, np.random.default_rng(seed), density=density, mean_span=mean_span
    )
    return read.tolist(), written.tolist()


def put_back(read: list[int], written: list[int]) -> list[int]:
    """The text of which spans were left out: each sentinel replaced by what was written behind it."""
    spans: dict[int, list[int]] = {}
    for token in written[:-1]:
        if token in VOCABULARY.sentinels:
            spans[token] = behind = []
        else:
            behind.append(token)
    return [t for token in read for t in spans.get(token, [token])]


@pytest.fixture(scope="session")
def with_sentinels(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny inputs with a tokenizer that has sentinels."""
    names = [f"<extra_id_{i}>" for i in range(SENTINELS)]
    folder: Path = tiny.write_inputs(tmp_path_factory.mktemp("sentinels"), more=names)
    return folder


class Cuts:
    """Random numbers that cut where a test says."""

    def __init__(self, *cuts: list[int]) -> None:
        self.cuts = list(cuts)

    def permutation(self, size: int) -> np.ndarray:
        first = self.cuts.pop(0)
        return np.array([*first, *(i for i in range(size) if i not in first)])


def test_an_example_by_hand() -> None:
    """Ten tokens and an end, 3 of them left out in spans of 2 and 1; 7 read, in stretches of 2, 4 and 1.

    Left out are tokens cut as 2 + 1 (behind the 2nd); read are 7 + 2 cut as 3 + 4 + 2 (behind the 3rd and 7th), of
    which both ends give one back. It is the example of the paper's figure 2.
    """
    text = np.array([10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 2])
    random: Any = Cuts([1], [2, 6])
    read, written = corrupted(text, VOCABULARY, random, density=0.3, mean_span=1.5)
    a, b, c = VOCABULARY.sentinels[:3]
    assert read.tolist() == [10, 11, a, 14, 15, 16, 17, b, 19, 2]
    assert written.tolist() == [a, 12, 13, b, 18, c, 2]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(3, V - SENTINELS - 1), min_size=1, max_size=60), st.integers(0, 9), st.booleans())
def test_putting_spans_back_gives_the_text(text: list[int], seed: int, closed: bool) -> None:
    text = [1, *text, 2] if closed else text
    read, written = corrupt(text, seed)
    assert put_back(read, written) == text
    assert read.count(2) == text.count(2) and written[-1] == 2
    used = [t for t in written if t in VOCABULARY.sentinels]
    assert used == VOCABULARY.sentinels[: len(used)].tolist(), "in their order, each once"
    assert [t for t in read if t in VOCABULARY.sentinels] == used[:-1]
    body = len(text) - 2 * closed
    tokens, spans = noise_shape(body, 0.15, 3.0)
    assert len(written) - len(used) - 1 == tokens and len(used) - 1 == spans
    # Two sentinels never stand side by side: they would be one span.
    assert all(not {x, y} <= set(VOCABULARY.sentinels.tolist()) for x, y in zip(read, read[1:], strict=False))


def test_the_shape_of_the_noise_is_t5s() -> None:
    """512 tokens: 77 left out in 26 spans, as the paper's settings give."""
    assert noise_shape(512, 0.15, 3.0) == (77, 26)
    assert noise_shape(2, 0.15, 3.0) == noise_shape(1, 0.15, 3.0) == (1, 1)
    assert noise_shape(10, 0.9, 1.0) == (9, 2), "spans need something between them"


def test_every_token_can_be_left_out_and_none_always_is() -> None:
    """Those within a span of an end have fewer spans to be in; all others are equals."""
    text, counts = list(range(3, 23)), np.zeros(20)
    for seed in range(3000):
        _, written = corrupt(text, seed)
        counts[[t - 3 for t in written if 3 <= t < 23]] += 1
    assert counts.sum() == 3000 * 3
    inner = counts[2:-2]
    assert inner.min() > 0.85 * inner.mean() and inner.max() < 1.15 * inner.mean()
    assert counts.min() > 0.25 * inner.mean()


def test_documents_in_a_row_and_texts_without_tokens() -> None:
    row = [4, 5, 6, 7, 8, 9, 2, 10, 11, 12, 13, 14, 15, 2]
    assert all(put_back(*corrupt(row, seed)) == row for seed in range(20))
    assert corrupt([2]) == ([2], [VOCABULARY.sentinels[0], 2])
    assert corrupt(row, 1) == corrupt(row, 1) != corrupt(row, 2)


def test_a_held_out_split_is_drawn_once(jobs: ModuleType, with_sentinels: Path) -> None:
    data = jobs.artifact(with_sentinels / "tokens", "tokens")
    a, b = (heldout_examples(Denoising().bound(Tokenizer(None, 64)), data, "test") for _ in range(2))
    assert [f["target_ids"].tolist() for f in a] == [f["target_ids"].tolist() for f in b]
    batch = Denoising().collate(a[:4])
    assert "target_bytes" not in batch and batch["decoder_input_ids"][:, 0].tolist() == [0] * 4
    tokenizer = load_tokenizer(with_sentinels / "tokenizer")
    texts = (
        Denoising()
        .bound(Tokenizer(tokenizer, 20))
        .examples(jobs.artifact(with_sentinels / "dataset", "dataset"), "test")
    )
    assert len(texts) > 10 and max(len(f["input_ids"]) for f in texts) == 20


def features(tiny: ModuleType, count: int = 40) -> list[dict[str, Any]]:
    return [
        {"input_ids": np.append(row["input_ids"], 2), "vocabulary": VOCABULARY}
        for row in tiny.lm_features(count, longest=24)
    ]


def test_parity_with_a_bare_loop_over_the_models_own_loss(parity: Any, tiny: ModuleType) -> None:
    """The spans of each step are those of its places in the data stream, whatever the micro-batches."""
    fields = {"vocabulary": V, "dropout_rate": 0.0, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    parity(Denoising(), features(tiny), lambda: tiny.model("t5", AutoModelForSeq2SeqLM, **fields), falls=0.3)


def test_padding_changes_no_prediction(tiny: ModuleType) -> None:
    model = tiny.model("t5", AutoModelForSeq2SeqLM, vocabulary=V)
    drawn = [Denoising().noised(f, i) for i, f in enumerate(features(tiny, 6))]
    batch = Denoising().bound(config=model.config).collate(drawn)
    with torch.no_grad():
        together = model(**model_inputs(batch, model)).logits
        for row, feature in enumerate(drawn):
            alone = model(**model_inputs(Denoising().collate([feature]), model)).logits[0]
            torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-5, rtol=0)


def test_the_stages(jobs: ModuleType, tiny: ModuleType, with_sentinels: Path, tmp_path: Path) -> None:
    """pretrain T5 on rows, finetune on texts that can be learned, distill, export, quantize, evaluate, gate."""
    count = ["one", "two", "three", "four", "five", "six", "seven"]
    texts = [" ".join((count * 3)[i : i + 12]) for i in range(7)]
    splits = {name: {"text": texts * times} for name, times in (("train", 8), ("validation", 1), ("test", 2))}
    data = jobs.artifact(tiny.write_dataset(tmp_path / "dataset", splits), "dataset", stage="texts")
    shape = {"type": "t5", "d_model": 32, "num_layers": 2, "num_heads": 2, "d_kv": 16, "d_ff": 64, "dropout_rate": 0.0}
    metrics = jobs.run_stage(
        tmp_path / "base",
        "pretrain",
        {
            "data": "tokens",
            "objective": "denoising",
            "model": shape,
            "learning_rate": 1e-2,
            "max_steps": 40,
            "global_batch_size": 8,
        },
        data=jobs.artifact(with_sentinels / "tokens", "tokens"),
    )
    config = json.loads((tmp_path / "base/output/config.json").read_text())
    assert (config["decoder_start_token_id"], config["eos_token_id"], config["num_decoder_layers"]) == (0, 2, 2)
    assert metrics["validation_cross_entropy"] < 1.1 * metrics["baseline_unigram"]
    metrics = jobs.run_stage(
        tmp_path / "teacher",
        "finetune",
        {
            "model": "base",
            "data": "texts",
            "objective": {"name": "denoising", "noise_density": 0.2},
            "learning_rate": 1e-2,
            "max_steps": 150,
            "global_batch_size": 14,
        },
        model=jobs.artifact(tmp_path / "base/output", "model"),
        data=data,
    )
    assert metrics["validation_cross_entropy"] < 0.6 * metrics["baseline_unigram"]
    shown = json.loads((tmp_path / "teacher/records/samples.json").read_text())
    assert all(s["truth"].startswith("<extra_id_0>") and "<extra_id_0>" in s["text"] for s in shown)
    assert any(s["prediction"].startswith("<extra_id_0>") for s in shown)
    teacher = jobs.artifact(tmp_path / "teacher/output", "model", stage="teacher")
    budget = {"learning_rate": 5e-3, "max_steps": 40, "global_batch_size": 14}
    given = {"teacher": "teacher", "data": "texts", "layers": 1, **budget}
    jobs.run_stage(tmp_path / "student", "distill", given, teacher=teacher, data=data)
    pruned = {"model": "teacher", "data": "texts", "keep": 0.5, "samples": 14}
    assert jobs.run_stage(tmp_path / "lean", "prune", pruned, model=teacher, data=data)["parameters_ratio"] < 1
    student = jobs.artifact(tmp_path / "student/output", "model", stage="student")
    assert jobs.run_stage(tmp_path / "onnx", "export", {"model": "student"}, model=student)["max_abs_diff"] < 1e-4
    onnx = jobs.artifact(tmp_path / "onnx/output", "onnx", stage="onnx")
    jobs.run_stage(tmp_path / "int8", "quantize", {"model": "onnx"}, model=onnx)
    models = [teacher, student, onnx, jobs.artifact(tmp_path / "int8/output", "onnx", stage="int8")]
    asked = {"models": [m.stage for m in models], "data": "texts", "resamples": 100, "latency": {"repeats": 2}}
    jobs.run_stage(tmp_path / "scores", "evaluate", asked, models=models, data=data)
    scores = json.loads((tmp_path / "scores/output/scores.json").read_text())
    values = {name: found["metrics"]["cross_entropy"]["value"] for name, found in scores["models"].items()}
    assert values["teacher"] < 0.6 * scores["baselines"]["unigram"]
    assert values["onnx"] == pytest.approx(values["student"], abs=1e-4)
    assert values["int8"] < scores["baselines"]["unigram"]
    judged = {"scores": "scores", "candidate": "onnx", "require": [{"metric": "cross_entropy", "max": 3.0}]}
    source = jobs.artifact(tmp_path / "scores/output", "scores")
    assert jobs.run_stage(tmp_path / "gate", "gate", judged, scores=source)["met"] == 1


def test_too_few_sentinels_are_refused_with_the_number_needed(
    jobs: ModuleType, tiny_inputs: Path, with_sentinels: Path
) -> None:
    data = jobs.artifact(tiny_inputs / "tokens", "tokens", stage="tokens")
    with pytest.raises(
        StageError, match="32 tokens with 2 spans left out need 3 sentinels, and the tokenizer has none"
    ) as caught:
        Denoising().bound(Tokenizer(load_tokenizer(tiny_inputs / "tokenizer"), 64)).examples(data, "train")
    assert "sentinels: 3" in str(caught.value)
    many = objective({"name": "denoising", "noise_density": 0.5, "mean_span_length": 1.0})
    with pytest.raises(StageError, match="need 17 sentinels, and the tokenizer has 8"):
        many.bound(Tokenizer(None, 64)).examples(jobs.artifact(with_sentinels / "tokens", "tokens"), "train")
