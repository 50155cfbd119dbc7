"""Classification metrics for many weightings of the same predictions at once (a bootstrap is R weight vectors).

All are computed for weights [R, N] in a few matrix products, without a loop over R. With ones they equal scikit-learn's
`accuracy_score`, `precision_recall_fscore_support(average="macro", zero_division=0)`,
`roc_auc_score(multi_class="ovr", average="macro")` and `log_loss`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def classification_metrics(
    labels: npt.NDArray[np.int64], logits: npt.NDArray[np.float32], weights: Array
) -> dict[str, Array]:
    """Metric name -> [R]. labels [N] in range(C), logits [N, C], weights [R, N] >= 0.

    Macro averages run over the classes that occur, as truth or as guess, under that weighting; ROC-AUC over the
    classes with positives and negatives (nan if there is none).
    """
    count, classes = logits.shape
    confusion = confusion_matrices(labels, logits.argmax(1), classes, weights)
    hits = np.einsum("rcc->rc", confusion)
    truth, guess = confusion.sum(2), confusion.sum(1)
    total = truth.sum(1)
    occurs = (truth + guess) > 0
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    nll = -log_probabilities[np.arange(count), labels]
    return {
        "accuracy": hits.sum(1) / total,
        "precision_macro": _macro(_ratio(hits, guess), occurs),
        "recall_macro": _macro(_ratio(hits, truth), occurs),
        "f1_macro": _macro(_ratio(2 * hits, truth + guess), occurs),
        "roc_auc_ovr": roc_auc_ovr(labels, np.exp(log_probabilities), weights),
        "cross_entropy": (weights @ nll) / total,
    }


def confusion_matrices(
    labels: npt.NDArray[np.int64], guesses: npt.NDArray[np.int64], classes: int, weights: Array
) -> Array:
    """Weighted confusion [R, C, C]: rows are the truth, columns the guess."""
    cell = np.zeros((len(labels), classes * classes))
    cell[np.arange(len(labels)), labels * classes + guesses] = 1.0
    return (weights @ cell).reshape(len(weights), classes, classes)


def roc_auc_ovr(labels: npt.NDArray[np.int64], scores: Array, weights: Array) -> Array:
    """Macro one-vs-rest area under the ROC curve [R]: P(positive scores above negative), ties counting half."""
    total = weights.sum(1)
    areas, valid = np.zeros(len(weights)), np.zeros(len(weights))
    for c in range(scores.shape[1]):
        order = np.argsort(scores[:, c], kind="stable")
        ranked, positive = scores[order, c], labels[order] == c
        starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
        w = weights[:, order]
        positives = np.add.reduceat(np.where(positive, w, 0.0), starts, axis=1)
        everyone = np.add.reduceat(w, starts, axis=1)
        negatives = everyone - positives
        below = np.cumsum(negatives, axis=1) - negatives
        won = (positives * (below + 0.5 * negatives)).sum(1)
        pairs = positives.sum(1) * (total - positives.sum(1))
        areas += np.divide(won, pairs, out=np.zeros_like(won), where=pairs > 0)
        valid += pairs > 0
    return np.divide(areas, valid, out=np.full_like(areas, np.nan), where=valid > 0)


def _ratio(numerator: Array, denominator: Array) -> Array:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _macro(values: Array, occurs: npt.NDArray[np.bool_]) -> Array:
    counted: Array = (values * occurs).sum(1) / np.maximum(occurs.sum(1), 1)
    return counted
