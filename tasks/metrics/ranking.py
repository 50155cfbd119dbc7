"""Metrics of an order by score, for many weightings of the same examples at once: ROC-AUC, average precision, ranks.

Weights come transposed, [N, R]: putting the examples in order then moves whole rows, which is several times faster.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def roc_auc_and_average_precision(
    positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating], columns: Array
) -> tuple[Array, Array]:
    """([R], [R]), nan where undefined. positive [N], scores [N], columns [N, R] >= 0.

    Area under the ROC curve: P(a positive scores above a negative), ties counting half. Average precision: the sum over
    thresholds of (recall gained) x (precision there), examples of one score entering together. As scikit-learn's
    `roc_auc_score` and `average_precision_score`.
    """
    order, starts = _groups(scores)
    weights = columns[order]
    positives = _summed(weights * positive[order, None], starts)
    everyone = _summed(weights, starts)
    negatives = everyone - positives
    total_positive, total = positives.sum(0), everyone.sum(0)
    below = np.cumsum(negatives, axis=0) - negatives
    won = (positives * (below + 0.5 * negatives)).sum(0)
    pairs = total_positive * (total - total_positive)
    # Examples at or above each threshold; what is left of a sum of zeros is rounding.
    hits = total_positive - np.cumsum(positives, axis=0) + positives
    named = total - np.cumsum(everyone, axis=0) + everyone
    precision = np.divide(hits, named, out=np.zeros_like(hits), where=named > 1e-12 * total)
    gained = (positives * precision).sum(0)
    return ratio(won, pairs, np.nan), ratio(gained, total_positive, np.nan)


def macro_ranking(
    positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating], columns: Array
) -> tuple[Array, Array]:
    """(mean ROC-AUC, mean average precision) [R] over the classes where each is defined; nan where none is.

    positive [N, C], scores [N, C], columns [N, R].
    """
    found = [roc_auc_and_average_precision(positive[:, c], scores[:, c], columns) for c in range(scores.shape[1])]
    areas, precisions = (defined_mean(np.stack(values)) for values in zip(*found, strict=True))
    return areas, precisions


def weighted_ranks(values: npt.NDArray[np.floating], columns: Array) -> Array:
    """Rank of each example [N, R] in the sample where it stands as often as it weighs; equals share their mean."""
    order, starts = _groups(values)
    together = _summed(columns[order], starts)
    ranks = np.cumsum(together, axis=0) - together + 0.5 * (together + 1)
    found = np.empty_like(columns)
    found[order] = np.repeat(ranks, np.diff(np.r_[starts, len(values)]), axis=0)
    return found


def ratio(numerator: Array, denominator: Array, undefined: float = 0.0) -> Array:
    """Element by element; `undefined` where the denominator is not positive."""
    found: Array = np.divide(numerator, denominator, out=np.full_like(numerator, undefined), where=denominator > 0)
    return found


def defined_mean(values: Array) -> Array:
    """Mean over the first axis of what is not nan; nan where nothing is."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(0), defined.sum(0).astype(np.float64), np.nan)


def _groups(scores: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(ascending order, where each run of equal scores begins in it)."""
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    return order, np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])


def _summed(rows: Array, starts: npt.NDArray[np.int64]) -> Array:
    if len(starts) == len(rows):
        return rows
    found: Array = np.add.reduceat(rows, starts, axis=0)
    return found
