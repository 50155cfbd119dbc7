"""The bootstrap against textbook figures, and that its resamples are shared by all models."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.metrics import bootstrap
from tasks.metrics.bootstrap import interval, replicates, resample_weights
from tasks.metrics.direction import greater_is_better


def mean_of(values: np.ndarray) -> object:
    return lambda weights: {"mean": weights @ values / weights.sum(1)}


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 3))
def test_each_resample_draws_as_many_as_there_are(n: int, resamples: int, seed: int) -> None:
    weights = np.concatenate(list(resample_weights(n, resamples, seed)))
    assert weights.shape == (resamples, n)
    assert (weights.sum(1) == n).all()


def test_resamples_depend_only_on_n_count_and_seed() -> None:
    def drawn(seed: int) -> np.ndarray:
        return np.concatenate(list(resample_weights(50, 200, seed)))

    assert np.array_equal(drawn(1), drawn(1))
    assert not np.array_equal(drawn(1), drawn(2))


def test_blocks_are_bounded_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "CELLS", 100)
    blocks = list(resample_weights(30, 10, 0))
    assert max(block.size for block in blocks) <= 100
    assert sum(len(block) for block in blocks) == 10


def test_interval_of_a_mean_is_the_normal_one() -> None:
    """For a mean, the percentile interval is mean +- 1.96 s / sqrt(n) up to O(1/n) (Efron and Tibshirani, 1993)."""
    values = np.random.default_rng(0).normal(3.0, 2.0, 2000)
    point, drawn = replicates(mean_of(values), len(values), 4000, seed=1)
    low, high = interval(drawn["mean"])
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert point["mean"] == pytest.approx(values.mean())
    assert (low, high) == (pytest.approx(values.mean() - half, abs=0.01), pytest.approx(values.mean() + half, abs=0.01))


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for trial in range(200):
        values = (rng.random(100) < 0.7).astype(float)
        low, high = interval(replicates(mean_of(values), 100, 300, seed=trial)[1]["mean"])
        covered += low <= 0.7 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_pairing_removes_shared_noise() -> None:
    """Two models that differ on one example in a hundred: each interval is wide, their difference is not."""
    values = (np.arange(300) % 3 == 0).astype(float)
    other = values.copy()
    other[:3] = 1.0
    first = replicates(mean_of(values), 300, 1000, seed=0)[1]["mean"]
    second = replicates(mean_of(other), 300, 1000, seed=0)[1]["mean"]
    low, high = interval(second - first)
    assert high - low < 0.3 * (interval(first)[1] - interval(first)[0])


def test_undefined_resamples_are_left_out_of_an_interval() -> None:
    assert interval(np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0)
    assert np.isnan(interval(np.array([np.nan]))[0])


def test_directions() -> None:
    up = ("accuracy", "f1_macro", "roc_auc_ovr", "recall_macro", "power")
    down = ("cross_entropy", "perplexity", "bits_per_token", "size_mb", "latency_p50_ms@1", "wer", "validation_loss")
    assert all(greater_is_better(name) for name in up)
    assert not any(greater_is_better(name) for name in down)
