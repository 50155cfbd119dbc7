"""Metrics of several labels an example, for many weightings at once.

With ones they equal scikit-learn's `f1_score(zero_division=0)` (micro, macro, samples), 1 - `hamming_loss`,
`accuracy_score` (of whole sets), `roc_auc_score(average="macro")`, `average_precision_score(average="macro")`,
`log_loss` and `brier_score_loss` (mean over the labels).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tasks.metrics.class_names import of_class
from tasks.metrics.ranking import macro_ranking, ratio

Array = npt.NDArray[np.float64]


def multi_label_metrics(
    truth: npt.NDArray[np.int64], logits: npt.NDArray[np.float32], weights: Array
) -> dict[str, Array]:
    """Metric name -> [R]. truth [N, C] of 0 and 1, logits [N, C], weights [R, N] >= 0.

    A label is named where its probability is above one half. ROC-AUC and average precision are averaged over the labels
    that have positives (and negatives) under that weighting.
    """
    total = weights.sum(1)
    actual, named = truth.astype(np.float64), (logits > 0).astype(np.float64)
    both = actual * named
    hits, claims = weights @ both, weights @ named + weights @ actual
    per_example = ratio(2 * both.sum(1), named.sum(1) + actual.sum(1))
    scores = logits.astype(np.float64)
    likely = np.logaddexp(0.0, scores) - actual * scores  # -log p of the truth, label by label
    probabilities = 1.0 / (1.0 + np.exp(-np.clip(scores, -700, 700)))
    area, precision = macro_ranking(truth == 1, logits, np.ascontiguousarray(weights.T))
    f1 = ratio(2 * hits, claims)
    return {
        "f1_micro": ratio(2 * hits.sum(1), claims.sum(1)),
        "f1_macro": f1.mean(1),
        "f1_samples": (weights @ per_example) / total,
        "hamming_accuracy": (weights @ (actual == named).mean(1)) / total,
        "subset_accuracy": (weights @ (actual == named).all(1)) / total,
        "roc_auc_macro": area,
        "average_precision_macro": precision,
        "brier": (weights @ np.square(probabilities - actual).mean(1)) / total,
        "cross_entropy": (weights @ likely.mean(1)) / total,
        **of_class("f1", np.where(claims > 0, f1, np.nan)),
    }
