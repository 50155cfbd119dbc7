"""Causal language modelling: what counts as a unit, agreement with the model's own loss, honest baselines."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from infra.errors import StageError
from tasks.objectives import SpecialIds
from tasks.objectives.causal_lm import CausalLM
from tasks.training.model_files import load_tokenizer
from tasks.training.model_inputs import model_inputs


def test_packed_rows_are_read_in_place(jobs: ModuleType, tiny_inputs: Path) -> None:
    rows = CausalLM().features(jobs.artifact(tiny_inputs / "tokens", "tokens"), "train", None, 64)
    ids = load_file(tiny_inputs / "tokens/train/0.safetensors")["ids"]
    assert sorted(np.concatenate([row["input_ids"] for row in rows]).tolist()) == sorted(ids.tolist())
    assert isinstance(rows.files[0], np.memmap)  # type: ignore[attr-defined]
    alone = next(row for row in rows if len(row["segments"]) == 1)
    assert isinstance(alone["input_ids"], np.memmap), "a row of one document is no copy"


@pytest.mark.parametrize("type", ["llama", "gpt2"])
def test_documents_in_a_row_do_not_see_each_other(tiny: ModuleType, type: str) -> None:
    """Loss and gradients of a packed row are those of its documents one by one, padding and all."""
    documents = [f["input_ids"] for f in tiny.lm_features(5)]
    packed = [
        {"input_ids": np.concatenate(documents[:3]), "segments": np.array([len(d) for d in documents[:3]])},
        {"input_ids": np.concatenate(documents[3:]), "segments": np.array([len(d) for d in documents[3:]])},
    ]
    found = []
    for features in (packed, [{"input_ids": document} for document in documents]):
        model, batch = tiny.model(type).eval(), CausalLM().collate(features, SpecialIds())
        model.config.use_cache = (
            False  # as the training loop does; with a cache transformers does not look for documents
        )
        loss, units = CausalLM().loss(model(**model_inputs(batch, model)).logits, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        assert units == CausalLM().units(batch) == sum(len(d) - 1 for d in documents)
        found.append((loss.detach(), next(p.grad for n, p in model.named_parameters() if "wte" in n or "embed" in n)))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-4, rtol=1e-4)


def test_texts_of_a_dataset_serve_too(jobs: ModuleType, tiny_inputs: Path) -> None:
    tokenizer = load_tokenizer(tiny_inputs / "tokenizer")
    rows = CausalLM().features(jobs.artifact(tiny_inputs / "dataset", "dataset"), "test", tokenizer, 20)
    assert len(rows) > 10 and max(len(row["input_ids"]) for row in rows) == 20


def test_loss_is_the_models_own_and_padding_counts_for_nothing(tiny: ModuleType) -> None:
    model, features = tiny.model(), tiny.lm_features(6)
    batch = CausalLM().collate(features, SpecialIds())
    with torch.no_grad():
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"])
        total, units = CausalLM().loss(output.logits, batch)
        alone = [
            CausalLM().loss(
                model(CausalLM().collate([f], SpecialIds())["input_ids"]).logits, CausalLM().collate([f], SpecialIds())
            )
            for f in features
        ]
    assert units == CausalLM().units(batch) == sum(len(f["input_ids"]) - 1 for f in features)
    torch.testing.assert_close(total / units, output.loss)
    assert float(total) == pytest.approx(sum(float(loss) for loss, _ in alone), rel=1e-5)


def test_predictions_hold_the_loss_of_each_example(tiny: ModuleType) -> None:
    model, batch = tiny.model(), CausalLM().collate(tiny.lm_features(6), SpecialIds())
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        total, units = CausalLM().loss(logits, batch)
    kept = CausalLM().predictions(logits.numpy(), {name: value.numpy() for name, value in batch.items()})
    assert kept["tokens"].sum() == units and kept["nll"].shape == (6,)
    assert kept["nll"].sum() == pytest.approx(float(total), rel=1e-5)


def test_metrics_weigh_tokens_not_examples() -> None:
    kept = {"nll": np.array([2.0, 9.0]), "tokens": np.array([1, 3])}
    found = CausalLM().metrics(kept, np.array([[1.0, 1.0], [2.0, 0.0]]))
    assert found["cross_entropy"] == pytest.approx([11 / 4, 2.0])
    assert found["perplexity"] == pytest.approx(np.exp([11 / 4, 2.0]))
    assert found["bits_per_token"] == pytest.approx(np.array([11 / 4, 2.0]) / math.log(2))


def rows(*texts: str) -> list[dict[str, Any]]:
    return [{"input_ids": np.array([ord(c) - 97 for c in text])} for text in texts]


def test_baselines_by_hand() -> None:
    """Train a b a b a: predicted are b a b a (unigram: two each); pairs ab twice, ba twice."""
    found = CausalLM().baselines(rows("ababa"), rows("ab"))
    assert found["unigram"] == pytest.approx(-math.log(0.5))
    # count 2 - discount 0.5 of 2, and the 0.25 left goes half to b; larger discounts are worse here.
    assert found["bigram"] == pytest.approx(-math.log(1.5 / 2 + 0.25 * 0.5))


def test_bigram_distribution_sums_to_one() -> None:
    """A baseline that gives away more than all its mass would be unbeatable."""
    train = rows("abracadabra", "cadabra", "dab")
    for before in "abcdr":
        total = sum(math.exp(-CausalLM().baselines(train, rows(before + after, "zz"))["unigram"]) for after in "abcdr")
        assert total > 0
    # With one heldout pair the best smoothing is chosen for that pair, so each probability may come from another
    # model; over a whole heldout text one model is chosen, and it cannot beat the entropy of the pairs themselves.
    text = "abracadabra" * 20
    counts: dict[str, dict[str, int]] = {}
    for x, y in zip(text, text[1:], strict=False):
        counts.setdefault(x, {}).setdefault(y, 0)
        counts[x][y] += 1
    entropy = -sum(n * math.log(n / sum(after.values())) for after in counts.values() for n in after.values()) / (
        len(text) - 1
    )
    found = CausalLM().baselines(rows(text), rows(text))
    assert entropy < found["bigram"] < entropy + 0.05 < found["unigram"]


def test_soft_loss_is_zero_for_the_teacher_itself_and_ignores_padding(tiny: ModuleType) -> None:
    batch = CausalLM().collate(tiny.lm_features(4), SpecialIds())
    logits = torch.randn(*batch["input_ids"].shape, 50, generator=torch.Generator().manual_seed(0))
    other = logits + 1
    other[batch["attention_mask"] == 0] = 99.0
    other[..., 0][batch["attention_mask"] == 0] = -99.0
    # Adding a constant to all logits leaves the distribution as it is; the padded places differ, and do not count.
    assert float(CausalLM().soft_loss(logits, other, batch, 2.0)) == pytest.approx(0, abs=1e-4)


def test_rows_longer_than_the_model_are_refused(jobs: ModuleType, tiny_inputs: Path) -> None:
    with pytest.raises(StageError, match="rows of 32 tokens do not fit a model of 16"):
        CausalLM().features(jobs.artifact(tiny_inputs / "tokens", "tokens"), "train", None, 16)


def test_a_missing_split_is_named(jobs: ModuleType, tiny_inputs: Path) -> None:
    with pytest.raises(StageError, match="no split 'dev'") as caught:
        CausalLM().features(jobs.artifact(tiny_inputs / "tokens", "tokens"), "dev", None, 64)
    assert "test, train, validation" in str(caught.value)


def test_samples_are_the_same_each_time(jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path) -> None:
    heldout = CausalLM().features(jobs.artifact(tiny_inputs / "tokens", "tokens"), "test", None, 64)
    model, tokenizer = tiny.model(vocabulary=320), load_tokenizer(tiny_inputs / "tokenizer")
    first = CausalLM().samples(model, tokenizer, heldout)
    assert first == CausalLM().samples(model, tokenizer, heldout)
    assert len(first) == 4 and all(sample["prompt"] and sample["continuation"] for sample in first)
