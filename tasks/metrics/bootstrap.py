"""The bootstrap: how much a metric would move if the test set had been drawn again (Efron, 1979).

A resample is a vector of weights: how often each example was drawn, with replacement. Every model is scored on the same
resamples, so differences between models can be taken resample by resample (a paired bootstrap), which removes the part
of the noise that all models share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
CELLS = 4_000_000


def resample_weights(n: int, resamples: int, seed: int) -> Iterator[Array]:
    """Blocks [r, n] of weights, `resamples` rows in all: a pure function of (n, resamples, seed)."""
    rng = np.random.default_rng(seed)
    block = max(1, CELLS // max(n, 1))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def replicates(
    metrics: Callable[[Array], Mapping[str, Array]], n: int, resamples: int, seed: int
) -> tuple[dict[str, float], dict[str, Array]]:
    """(point estimates, metric -> [resamples] values): `metrics` maps weights [r, n] to metric -> [r]."""
    point = {name: float(values[0]) for name, values in metrics(np.ones((1, n))).items()}
    blocks = [metrics(weights) for weights in resample_weights(n, resamples, seed)]
    return point, {name: np.concatenate([block[name] for block in blocks]) for name in point}


def interval(values: Array, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided percentile interval; (nan, nan) where no resample has a value."""
    defined = values[np.isfinite(values)]
    if not len(defined):
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def upper_bound(values: Array, confidence: float) -> float:
    """One-sided bound: with this confidence the true value is not above it. Undefined resamples count as the worst."""
    return float(np.quantile(np.where(np.isnan(values), np.inf, values), confidence, method="higher"))
