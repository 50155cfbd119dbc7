"""Classification metrics for many weightings of the same predictions at once (a bootstrap is R weight vectors).

All are computed for weights [R, N] in a few matrix products, without a loop over R. With ones they equal scikit-learn's
`accuracy_score`, `precision_recall_fscore_support(zero_division=0)` (macro and per class),
`roc_auc_score(multi_class="ovr", average="macro")`, `average_precision_score(average="macro")`, `matthews_corrcoef`,
`log_loss` and `brier_score_loss`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tasks.metrics.calibration import brier_score, expected_calibration_error
from tasks.metrics.class_names import of_class
from tasks.metrics.ranking import macro_ranking, ratio

Array = npt.NDArray[np.float64]


def classification_metrics(
    labels: npt.NDArray[np.int64], logits: npt.NDArray[np.float32], weights: Array
) -> dict[str, Array]:
    """Metric name -> [R]. labels [N] in range(C), logits [N, C], weights [R, N] >= 0.

    Macro averages run over the classes that occur, as truth or as guess, under that weighting, and the metrics of a
    class (`f1@#<number>`) are nan where it does not; ROC-AUC and average precision over the classes with positives and
    negatives (nan if there is none).
    """
    count, classes = logits.shape
    confusion = confusion_matrices(labels, logits.argmax(1), classes, weights)
    hits = np.einsum("rcc->rc", confusion)
    truth, guess = confusion.sum(2), confusion.sum(1)
    total = truth.sum(1)
    occurs = (truth + guess) > 0
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    probabilities = np.exp(log_probabilities)
    nll = -log_probabilities[np.arange(count), labels]
    area, average_precision = macro_ranking(
        labels[:, None] == np.arange(classes), probabilities, np.ascontiguousarray(weights.T)
    )
    per_class = {
        "precision": ratio(hits, guess),
        "recall": ratio(hits, truth),
        "f1": ratio(2 * hits, truth + guess),
    }
    found = {
        "accuracy": hits.sum(1) / total,
        **{f"{name}_macro": _macro(values, occurs) for name, values in per_class.items()},
        "mcc": matthews_correlation(confusion),
        "roc_auc_ovr": area,
        "average_precision_macro": average_precision,
        "cross_entropy": (weights @ nll) / total,
        "brier": brier_score(labels, probabilities, weights),
        "ece": expected_calibration_error(labels, probabilities, weights),
    }
    for name, values in per_class.items():
        found |= of_class(name, np.where(occurs, values, np.nan))
    return found


def matthews_correlation(confusion: Array) -> Array:
    """Correlation of truth and guess [R] from confusion [R, C, C], 0 where one is constant (Gorodkin, 2004)."""
    truth, guess = confusion.sum(2), confusion.sum(1)
    total = truth.sum(1)
    covariance = np.einsum("rcc->r", confusion) * total - (truth * guess).sum(1)
    spread = (total**2 - (truth**2).sum(1)) * (total**2 - (guess**2).sum(1))
    return ratio(covariance, np.sqrt(np.maximum(spread, 0.0)))


def confusion_matrices(
    labels: npt.NDArray[np.int64], guesses: npt.NDArray[np.int64], classes: int, weights: Array
) -> Array:
    """Weighted confusion [R, C, C]: rows are the truth, columns the guess."""
    cell = np.zeros((len(labels), classes * classes))
    cell[np.arange(len(labels)), labels * classes + guesses] = 1.0
    return (weights @ cell).reshape(len(weights), classes, classes)


def _macro(values: Array, occurs: npt.NDArray[np.bool_]) -> Array:
    counted: Array = (values * occurs).sum(1) / np.maximum(occurs.sum(1), 1)
    return counted
