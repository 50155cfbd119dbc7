"""Metrics of predicted numbers, for many weightings at once.

With ones they equal scikit-learn's `mean_squared_error`, `mean_absolute_error` and `r2_score`, and scipy's `pearsonr`
and `spearmanr`; a weight of 2 is the example standing there twice, for ranks too.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tasks.metrics.ranking import weighted_ranks

Array = npt.NDArray[np.float64]


def regression_metrics(
    truth: npt.NDArray[np.floating], guesses: npt.NDArray[np.floating], weights: Array
) -> dict[str, Array]:
    """Metric name -> [R]. truth [N], guesses [N], weights [R, N] >= 0. Correlations with a constant are nan."""
    total = weights.sum(1)
    actual, given = truth.astype(np.float64), guesses.astype(np.float64)
    squares = weights @ np.square(actual - given)
    # Measured from the mean, so that large numbers lose no digits to the difference of their squares.
    centred = actual - actual.mean()
    spread = weights @ np.square(centred) - np.square(weights @ centred) / total
    flat = spread <= 1e-12 * np.maximum(weights @ np.square(centred), np.finfo(np.float64).tiny)
    unexplained = np.divide(squares, spread, out=np.where(squares > 0, 1.0, 0.0), where=~flat)
    return {
        "spearman": spearman(actual, given, weights),
        "pearson": _correlation(actual[:, None], given[:, None], np.ascontiguousarray(weights.T)),
        "r2": 1.0 - unexplained,
        "mse": squares / total,
        "mae": (weights @ np.abs(actual - given)) / total,
    }


def spearman(truth: npt.NDArray[np.floating], guesses: npt.NDArray[np.floating], weights: Array) -> Array:
    """[R]: correlation of ranks, equal values sharing their mean rank. truth [N], guesses [N], weights [R, N]."""
    columns = np.ascontiguousarray(weights.T)
    return _correlation(weighted_ranks(truth, columns), weighted_ranks(guesses, columns), columns)


def _correlation(x: Array, y: Array, columns: Array) -> Array:
    """Pearson's correlation [R] of x and y, each [N, R] or [N, 1], under weights [N, R]."""
    total = columns.sum(0)
    smallest = 1e-12 * total * np.abs(x).max() * np.abs(y).max()  # below it, a constant's rounding
    x = x - (columns * x).sum(0) / total
    y = y - (columns * y).sum(0) / total
    weighted = columns * x
    product, spread = (weighted * y).sum(0), (weighted * x).sum(0) * (columns * y * y).sum(0)
    root = np.sqrt(spread)
    found: Array = np.divide(product, root, out=np.full_like(root, np.nan), where=root > smallest)
    return found
