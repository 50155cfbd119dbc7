"""Metrics of label sets, numbers and calibration: scikit-learn's and scipy's values under any weighting."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    hamming_loss,
    log_loss,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
    roc_auc_score,
)

from tasks.metrics.calibration import brier_score, expected_calibration_error
from tasks.metrics.class_names import with_class_names
from tasks.metrics.classification import classification_metrics
from tasks.metrics.direction import greater_is_better
from tasks.metrics.multi_label import multi_label_metrics
from tasks.metrics.regression import regression_metrics


def resamples(count: int, rows: int) -> np.ndarray[Any, Any]:
    weights = np.random.default_rng(1).multinomial(count, np.ones(count) / count, size=rows).astype(float)
    weights[0] = 1.0
    return weights


def sets(count: int, labels: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    truth = (random.random((count, labels)) < 0.3).astype(np.int64)
    truth[0] = 0  # an example without any label
    logits = (random.normal(size=(count, labels)) + 2 * truth - 1).round(1).astype(np.float32)
    logits[0] = -1
    return truth, logits


def test_label_sets_equal_scikit_learn() -> None:
    truth, logits = sets(90, 4)
    weights, guesses = resamples(90, 5), (logits > 0).astype(int)
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    found = multi_label_metrics(truth, logits, weights)
    for row, w in enumerate(weights):
        given: dict[str, Any] = {"sample_weight": w, "zero_division": 0}
        each = [log_loss(truth[:, c], probabilities[:, c], sample_weight=w, labels=[0, 1]) for c in range(4)]
        expected = {
            **{f"f1_{how}": f1_score(truth, guesses, average=how, **given) for how in ("micro", "macro", "samples")},
            **{f"f1@#{c}": value for c, value in enumerate(f1_score(truth, guesses, average=None, **given))},
            "hamming_accuracy": 1 - hamming_loss(truth, guesses, sample_weight=w),
            "subset_accuracy": accuracy_score(truth, guesses, sample_weight=w),
            "roc_auc_macro": roc_auc_score(truth, probabilities, sample_weight=w),
            "average_precision_macro": average_precision_score(truth, probabilities, sample_weight=w),
            "cross_entropy": np.mean(each),
            "brier": np.average(((probabilities - truth) ** 2).mean(1), weights=w),
        }
        assert {name: values[row] for name, values in found.items()} == pytest.approx(expected, abs=1e-6)


def test_numbers_equal_scikit_learn_and_scipy_where_a_weight_of_two_is_standing_there_twice() -> None:
    """Rounded, so that there are ties; far from zero, where moments lose their digits."""
    random = np.random.default_rng(0)
    truth = (random.normal(size=80).round(1) + 1e4).astype(np.float64)
    guesses = (truth + random.normal(size=80)).round(1)
    weights = resamples(80, 5)
    found = regression_metrics(truth, guesses, weights)
    for row, w in enumerate(weights):
        y, x = (np.repeat(values, w.astype(int)) for values in (truth, guesses))
        expected = {
            "mse": mean_squared_error(y, x),
            "mae": mean_absolute_error(y, x),
            "r2": r2_score(y, x),
            "pearson": pearsonr(y, x)[0],
            "spearman": spearmanr(y, x)[0],
        }
        assert {name: values[row] for name, values in found.items()} == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_a_constant_guess_or_truth_has_no_correlation(value: float) -> None:
    constant, moving = np.full(7, value), np.arange(7.0)
    for truth, guess in ((moving, constant), (constant, moving)):
        found = regression_metrics(truth, guess, np.ones((1, 7)))
        assert np.isnan(found["pearson"][0]) and np.isnan(found["spearman"][0])
        assert found["r2"][0] == (0.0 if truth is constant else pytest.approx(r2_score(truth, guess)))
    assert regression_metrics(constant, constant, np.ones((1, 7)))["r2"][0] == 1.0


def test_calibration_by_hand() -> None:
    """Four guesses at 0.8, half of them right: a gap of 0.3; two at 0.6, both right: 0.4. Weights count them again."""
    probabilities = np.array([[0.8, 0.2]] * 4 + [[0.6, 0.4]] * 2)
    labels = np.array([0, 0, 1, 1, 0, 0])
    weights = np.array([[1.0] * 6, [1, 1, 1, 1, 0, 0], [2, 0, 0, 0, 0, 1]])
    found = expected_calibration_error(labels, probabilities, weights)
    assert found == pytest.approx([(4 * 0.3 + 2 * 0.4) / 6, 0.3, (2 * 0.2 + 0.4) / 3])
    assert brier_score(labels, probabilities, weights)[1] == pytest.approx((2 * 0.04 + 2 * 0.64) / 4)


def test_a_bin_holds_its_upper_edge() -> None:
    """0.8 is the upper edge of bin 12, 0.801 lies in bin 13: together they would cancel out, apart they do not."""
    probabilities = np.array([[12 / 15, 3 / 15], [0.801, 0.199]])
    found = expected_calibration_error(np.array([0, 1]), probabilities, np.ones((1, 2)))
    assert found[0] == pytest.approx((0.2 + 0.801) / 2)


def test_a_thousand_resamples_of_a_thousand_examples_are_fast() -> None:
    weights = resamples(1000, 1000)
    labels = np.random.default_rng(0).integers(0, 8, 1000)
    logits = np.random.default_rng(1).normal(size=(1000, 8)).astype(np.float32)
    for compute in (
        lambda: classification_metrics(labels, logits, weights),
        lambda: multi_label_metrics(*sets(1000, 8), weights),
        lambda: regression_metrics(logits[:, 0], logits[:, 1], weights),
    ):
        began = time.process_time()
        compute()
        assert time.process_time() - began < 2


def test_metrics_of_a_class_take_its_name_and_never_its_direction() -> None:
    values = {"f1_macro": 1, "f1@#1": 2, "recall@10": 3, "f1@#7": 4}
    named = with_class_names(values, ["a", "error"])
    assert named == {"f1_macro": 1, "f1@error": 2, "recall@10": 3, "f1@#7": 4}
    assert with_class_names(values, None) == values
    assert greater_is_better("f1@error") and not greater_is_better("latency@1")
