"""Masked language modelling: what is hidden, agreement with the model's own loss, a training run, and all the stages."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.metrics import accuracy_score, log_loss
from transformers import AutoModelForMaskedLM

from infra.errors import Preempted, StageError
from tasks.data.tokens.tokenizing import save_tokenizer, train_tokenizer
from tasks.losses.cross_entropy import IGNORED
from tasks.models.inputs import model_inputs
from tasks.objective import objective
from tasks.objectives.text.inputs.masking import masked, word_numbers
from tasks.objectives.text.inputs.vocabulary import Vocabulary, Words
from tasks.objectives.text.masked_lm import MaskedLM
from tasks.processors.tokenizer import Tokenizer, load_tokenizer
from tasks.training.loop.features import heldout_examples
from tasks.training.loop.train import train
from tasks.training.settings import TrainingParams

STEPS = 12
V = 50
VOCABULARY = Vocabulary(V, np.arange(V) < 4, 3, 2, np.zeros(0, np.int64))


def noise(ids: Any, seed: int = 0, vocabulary: Vocabulary = VOCABULARY, **shares: float) -> tuple[Any, Any]:
    given = {"share": 0.15, "mask_replace": 0.8, "random_replace": 0.1, **shares}
    return masked(np.asarray(ids), vocabulary, np.random.default_rng(seed), **given)


def features(tiny: ModuleType, count: int = 40) -> list[dict[str, Any]]:
    """Token rows of unequal lengths, each closed by the end-of-text token."""
    return [
        {"input_ids": np.append(1 + row["input_ids"], 2), "vocabulary": VOCABULARY}
        for row in tiny.lm_features(count, vocabulary=V - 1, longest=24)
    ]


@pytest.fixture(scope="session")
def maskable(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny inputs with a tokenizer that has a mask token."""
    folder: Path = tiny.write_inputs(tmp_path_factory.mktemp("maskable"), {"mask_token": "<mask>"})
    return folder


def test_shares_are_those_asked_for_and_special_tokens_are_left_alone() -> None:
    random = np.random.default_rng(0)
    ids = random.integers(4, V, 20_000)
    ids[::10] = random.integers(0, 4, 2000)
    read, labels = noise(ids)
    hidden = labels != IGNORED
    assert hidden.sum() == round(0.15 * 18_000), "exactly, not on average"
    assert (labels[hidden] == ids[hidden]).all() and ids[hidden].min() >= 4
    assert (read[~hidden] == ids[~hidden]).all()
    by_mask, kept = (read[hidden] == 3).mean(), (read[hidden] == ids[hidden]).mean()
    # A random token is the old one once in 46.
    assert by_mask == pytest.approx(0.8, abs=0.03) and kept == pytest.approx(0.1 + 0.1 / 46, abs=0.02)
    others = read[hidden][read[hidden] != 3]
    assert others.min() >= 4, "no special token stands for another"
    assert len(np.unique(others)) > 40


def test_each_place_is_hidden_as_often_as_any_other() -> None:
    counts = np.zeros(20)
    for seed in range(2000):
        counts += noise(np.arange(4, 24), seed)[1] != IGNORED
    assert counts.sum() == 2000 * 3
    assert np.abs(counts / 2000 - 0.15).max() < 0.04


def test_the_seed_decides_and_at_least_one_token_is_hidden() -> None:
    ids = np.arange(4, 44)
    a, b, c = noise(ids, 1), noise(ids, 1), noise(ids, 2)
    assert (a[0] == b[0]).all() and (a[1] == b[1]).all() and (a[1] != c[1]).any()
    assert (noise([7], share=0.01)[1] == 7).all()
    read, labels = noise([2, 2])
    assert read.tolist() == [2, 2] and (labels == IGNORED).all(), "a row of special tokens asks nothing"
    read, labels = noise(ids, share=0.5, mask_replace=0.0, random_replace=0.0)
    assert (read == ids).all() and (labels != IGNORED).sum() == 20


def test_words_are_hidden_whole() -> None:
    """Tokens 30 and above go on with a word; behind a special token nothing does."""
    words = Vocabulary(V, VOCABULARY.special, 3, 2, VOCABULARY.sentinels, Words(np.arange(V) >= 30, np.ones(V, bool)))
    ids = np.array([4, 30, 31, 5, 6, 32, 2, 33, 34, 7, 8, 9, 35, 36, 37, 10] * 8)
    groups = [[0, 1, 2], [3], [4, 5], [7, 8], [9], [10], [11, 12, 13, 14], [15]]
    total = 0
    for seed in range(300):
        hidden = noise(ids, seed, words)[1] != IGNORED
        total += int(hidden.sum())
        for start in range(0, len(ids), 16):
            for group in groups[:-1]:  # the last goes on with nothing, and the first of the next row begins again
                assert len(set(hidden[start + np.array(group)])) == 1
    assert total / 300 == pytest.approx(0.15 * 15 * 8, rel=0.05)


@pytest.mark.parametrize("algorithm", ["wordpiece", "bpe", "unigram"])
def test_words_are_known_for_every_kind_of_tokenizer(tmp_path: Path, algorithm: str) -> None:
    corpus = ["remember forget ( ) remembers forgot ten ring über"] * 4
    save_tokenizer(train_tokenizer(algorithm, iter([corpus]), 300 if algorithm != "wordpiece" else 40), tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    words = Vocabulary.of(tokenizer, whole_words=True).words
    assert words is not None
    text = "remembering forgotten remembering(forgotten) über"
    ids = np.array(tokenizer(text)["input_ids"])
    numbers = word_numbers(ids, np.arange(len(ids)), words)
    assert len(ids) > numbers[-1] + 2, "some words are several tokens"
    found = [tokenizer.decode(ids[numbers == n]).strip().replace("##", "") for n in range(numbers[-1] + 1)]
    assert found == ["remembering", "forgotten", "remembering", "(", "forgotten", ")", "über"]


def test_a_held_out_split_is_masked_once_and_packed_rows_stay_in_place(jobs: ModuleType, maskable: Path) -> None:
    data, tokenizer = jobs.artifact(maskable / "tokens", "tokens"), load_tokenizer(maskable / "tokenizer")
    rows = MaskedLM().bound(Tokenizer(tokenizer, 64)).examples(data, "train")
    assert isinstance(rows[0]["input_ids"], np.ndarray) and "labels" not in rows[0]
    a, b = (heldout_examples(MaskedLM().bound(Tokenizer(None, 64)), data, "test") for _ in range(2))
    assert [f["labels"].tolist() for f in a] == [f["labels"].tolist() for f in b]
    assert a[0]["labels"].tolist() != a[1]["labels"].tolist()
    texts = MaskedLM().bound(Tokenizer(tokenizer, 20)).examples(jobs.artifact(maskable / "dataset", "dataset"), "test")
    assert len(texts) > 10 and max(len(f["input_ids"]) for f in texts) == 20


@pytest.mark.parametrize("type", ["bert", "roberta", "ernie"])
def test_loss_is_the_models_own_and_padding_changes_nothing(tiny: ModuleType, type: str) -> None:
    """Dropping the mask, or counting padding, would show in either."""
    model, chosen = tiny.model(type, AutoModelForMaskedLM), features(tiny, 6)
    drawn = [MaskedLM().noised(f, i) for i, f in enumerate(chosen)]
    batch = MaskedLM().bound(config=model.config).collate(drawn)
    assert batch["attention_mask"].min() == 0
    with torch.no_grad():
        output = model(**model_inputs(batch, model), labels=batch["labels"])
        total, units = MaskedLM().loss({"logits": output.logits}, batch)
        torch.testing.assert_close(total / units, output.loss)
        for row, feature in enumerate(drawn):
            alone = model(**model_inputs(MaskedLM().collate([feature]), model)).logits[0]
            torch.testing.assert_close(output.logits[row, : len(alone)], alone, atol=1e-5, rtol=0)
    assert units == MaskedLM().units(batch) == sum(int((f["labels"] != IGNORED).sum()) for f in drawn)
    kept = MaskedLM().predictions(
        {"logits": output.logits.numpy()}, {name: value.numpy() for name, value in batch.items()}
    )
    assert kept["nll"].sum() == pytest.approx(float(total), rel=1e-5) and kept["tokens"].sum() == units


def test_metrics_equal_scikit_learn_and_a_weight_of_two_is_the_example_twice() -> None:
    random = np.random.default_rng(0)
    labels = np.where(random.random((5, 9)) < 0.4, random.integers(0, 6, (5, 9)), IGNORED)
    labels[4] = IGNORED  # an example that asks nothing
    logits = random.normal(size=(5, 9, 6)).astype(np.float32)
    kept = MaskedLM().predictions({"logits": logits}, {"labels": labels})
    weights = np.array([[1, 1, 1, 1, 1], [2, 0, 1, 3, 1]], float)
    found = MaskedLM().metrics(kept, weights)
    for row, w in enumerate(weights):
        counted = labels != IGNORED
        of = np.repeat(w, 9).reshape(5, 9)[counted]
        truth, scores = labels[counted], torch.softmax(torch.from_numpy(logits[counted]).double(), -1).numpy()
        nats = log_loss(truth, scores, sample_weight=of, labels=range(6))
        assert found["cross_entropy"][row] == pytest.approx(nats, rel=1e-5)
        assert found["perplexity"][row] == pytest.approx(math.exp(nats), rel=1e-5)
        assert found["accuracy"][row] == pytest.approx(accuracy_score(truth, scores.argmax(1), sample_weight=of))
    twice = MaskedLM().predictions({"logits": logits[[0, 0, 2, 3, 3, 3]]}, {"labels": labels[[0, 0, 2, 3, 3, 3]]})
    for name, values in MaskedLM().metrics(twice, np.ones((1, 6))).items():
        assert values[0] == pytest.approx(found[name][1])
    assert np.isnan(MaskedLM().metrics(kept, np.array([[0, 0, 0, 0, 1.0]]))["cross_entropy"][0])


def test_the_baseline_by_hand() -> None:
    """Seen: 4 4 4 5 (the end counts nothing), add-half over ids 0 to 5; told: 4 and 5."""
    seen = [{"input_ids": np.array([4, 4, 4, 5, 2]), "vocabulary": VOCABULARY}]
    heldout = [{"input_ids": np.array([3, 3, 2]), "labels": np.array([4, 5, IGNORED]), "vocabulary": VOCABULARY}]
    expected = -(math.log(3.5 / 7) + math.log(1.5 / 7)) / 2
    assert MaskedLM().baselines(seen, heldout) == {"unigram": pytest.approx(expected)}


@pytest.mark.parametrize(("type", "micro", "whole_words"), [("bert", 2, False), ("roberta", 4, True)])
def test_parity_with_a_bare_loop_over_the_models_own_loss(
    parity: Any, tiny: ModuleType, type: str, micro: int, whole_words: bool
) -> None:
    """Rows differ in their number of hidden tokens, so a mean of means would show; so would other masks."""
    by_three = Words(np.arange(V) % 3 == 0, np.ones(V, bool))
    words = Vocabulary(V, VOCABULARY.special, 3, 2, VOCABULARY.sentinels, by_three)
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    parity(
        objective({"name": "masked_lm", "whole_words": whole_words}),
        [{**f, "vocabulary": words} for f in features(tiny)],
        lambda: tiny.model(type, AutoModelForMaskedLM, initializer_range=0.2, **quiet),
        micro=micro,
        falls=0.3,
    )


def test_a_resumed_training_meets_the_same_masks(jobs: ModuleType, tiny: ModuleType, tmp_path: Path) -> None:
    """Masks are a function of the place in the data stream: stopped at step 7 of 12 it ends bit for bit the same."""
    rows, params = features(tiny), TrainingParams(max_steps=STEPS, global_batch_size=8, learning_rate=1e-2, seed=3)
    questions = iter([False] * 6 + [True])

    def end(folder: str, **given: Any) -> dict[str, torch.Tensor]:
        job = jobs.make_job(tmp_path / folder, params, **given)
        result = train(job, tiny.model("bert", AutoModelForMaskedLM), MaskedLM(), rows, [], params)
        return dict(result.model.named_parameters())

    straight = end("straight")
    with pytest.raises(Preempted):
        end("stopped", stop_requested=lambda: next(questions), store=tmp_path / "store")
    resumed = end("resumed", store=tmp_path / "store")
    assert all(torch.equal(resumed[name], value) for name, value in straight.items())


COUNTING = [["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"][i:] for i in range(6)]


def test_the_stages(jobs: ModuleType, tiny: ModuleType, maskable: Path, tmp_path: Path) -> None:
    """pretrain on rows, finetune on texts that can be learned, then distill, prune, export, quantize, evaluate, gate."""
    texts = [" ".join((words * 3)[:14]) for words in COUNTING]
    splits = {name: {"text": texts * times} for name, times in (("train", 8), ("validation", 1), ("test", 2))}
    data = jobs.artifact(tiny.write_dataset(tmp_path / "dataset", splits), "dataset", stage="texts")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    quiet = {"hidden_dropout_prob": 0.0, "initializer_range": 0.1}
    metrics = jobs.run_stage(
        tmp_path / "base",
        "pretrain",
        {
            "data": "tokens",
            "objective": {"name": "masked_lm", "whole_words": True},
            "model": {"type": "bert", "max_position_embeddings": 32, **shape, **quiet},
            "learning_rate": 5e-3,
            "max_steps": 6,
            "global_batch_size": 8,
        },
        data=jobs.artifact(maskable / "tokens", "tokens"),
    )
    assert 3 < metrics["validation_cross_entropy"] < 7 and metrics["baseline_unigram"] > 3
    config = json.loads((tmp_path / "base/output/config.json").read_text())
    assert config["pad_token_id"] == 0 and config["vocab_size"] == tiny.VOCABULARY
    budget = {"learning_rate": 1e-2, "max_steps": 200, "global_batch_size": 12}
    metrics = jobs.run_stage(
        tmp_path / "teacher",
        "finetune",
        {"model": "base", "data": "texts", "objective": {"name": "masked_lm", "mask_share": 0.2}, **budget},
        model=jobs.artifact(tmp_path / "base/output", "model"),
        data=data,
    )
    assert metrics["validation_cross_entropy"] < 0.5 * metrics["baseline_unigram"]
    assert metrics["validation_accuracy"] > 0.7
    shown = json.loads((tmp_path / "teacher/records/samples.json").read_text())
    assert "<mask>" in "".join(s["text"] for s in shown) and all(s["truth"] and s["prediction"] for s in shown)
    teacher = jobs.artifact(tmp_path / "teacher/output", "model", stage="teacher")
    budget = {"learning_rate": 5e-3, "max_steps": 40, "global_batch_size": 12}
    jobs.run_stage(
        tmp_path / "student",
        "distill",
        {"teacher": "teacher", "data": "texts", "layers": 1, **budget},
        teacher=teacher,
        data=data,
    )
    pruned = {"model": "teacher", "data": "texts", "keep": 0.5, "samples": 24, "heal": {**budget, "max_steps": 5}}
    assert jobs.run_stage(tmp_path / "lean", "prune", pruned, model=teacher, data=data)["parameters_ratio"] < 1
    student = jobs.artifact(tmp_path / "student/output", "model", stage="student")
    jobs.run_stage(tmp_path / "onnx", "export", {"model": "student"}, model=student)
    onnx = jobs.artifact(tmp_path / "onnx/output", "onnx", stage="onnx")
    jobs.run_stage(tmp_path / "int8", "quantize", {"model": "onnx"}, model=onnx)
    models = [teacher, student, onnx, jobs.artifact(tmp_path / "int8/output", "onnx", stage="int8")]
    given = {"models": [m.stage for m in models], "data": "texts", "resamples": 100, "latency": {"repeats": 2}}
    jobs.run_stage(tmp_path / "scores", "evaluate", given, models=models, data=data)
    scores = json.loads((tmp_path / "scores/output/scores.json").read_text())
    values = {name: found["metrics"]["cross_entropy"]["value"] for name, found in scores["models"].items()}
    assert values["teacher"] < 0.5 * scores["baselines"]["unigram"]
    assert values["onnx"] == pytest.approx(values["student"], abs=1e-4)
    assert values["int8"] < scores["baselines"]["unigram"]
    assert scores["models"]["teacher"]["metrics"]["accuracy"]["greater_is_better"]
    require = [{"metric": "cross_entropy", "max": 3.0}, {"metric": "accuracy", "min": 0.2}]
    judged = {"scores": "scores", "candidate": "int8", "require": require}
    source = jobs.artifact(tmp_path / "scores/output", "scores")
    assert jobs.run_stage(tmp_path / "gate", "gate", judged, scores=source)["met"] == 2


def test_a_tokenizer_without_a_mask_token_is_refused(jobs: ModuleType, tiny_inputs: Path) -> None:
    data = jobs.artifact(tiny_inputs / "tokens", "tokens", stage="tokens")
    with pytest.raises(StageError, match="no mask token") as caught:
        MaskedLM().bound(Tokenizer(load_tokenizer(tiny_inputs / "tokenizer"), 64)).examples(data, "train")
    assert "mask_token: true" in str(caught.value)


def test_texts_without_a_token_to_hide_are_refused(
    jobs: ModuleType, tiny: ModuleType, maskable: Path, tmp_path: Path
) -> None:
    data = jobs.artifact(tiny.write_dataset(tmp_path / "d", {"train": {"text": ["a b", "", "<eos>"]}}), "dataset")
    with pytest.raises(StageError, match=r"2 of 3 texts of split 'train' hold no token .* row 1: ''"):
        MaskedLM().bound(Tokenizer(load_tokenizer(maskable / "tokenizer"), 64)).examples(data, "train")


def test_shares_beyond_all_are_refused() -> None:
    with pytest.raises(ValidationError, match="together at most 1"):
        MaskedLM(mask_replace=0.8, random_replace=0.3)
