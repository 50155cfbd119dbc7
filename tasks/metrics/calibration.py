"""How far probabilities can be believed, for many weightings at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
BINS = 15


def expected_calibration_error(labels: npt.NDArray[np.int64], probabilities: Array, weights: Array) -> Array:
    """[R]: the mean distance between confidence and accuracy (Guo et al., 2017). probabilities [N, C], weights [R, N].

    An example's confidence is its largest probability; 15 bins of equal width, bin m holding ((m - 1) / 15, m / 15].
    Per bin |share that is right - mean confidence|, weighted by the share of the examples that fall into it.
    """
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    gaps = np.zeros((len(labels), BINS))
    gaps[np.arange(len(labels)), bins] = right - confidence
    found: Array = np.abs(weights @ gaps).sum(1) / weights.sum(1)
    return found


def brier_score(labels: npt.NDArray[np.int64], probabilities: Array, weights: Array) -> Array:
    """[R]: mean over the examples of sum_c (p_c - y_c)^2 (Brier, 1950), half of it for two classes.

    As scikit-learn's `brier_score_loss(scale_by_half="auto")`: for two classes it is (p_1 - y_1)^2.
    """
    squares = np.square(probabilities - np.eye(probabilities.shape[1])[labels]).sum(1)
    scale = 0.5 if probabilities.shape[1] == 2 else 1.0
    found: Array = scale * (weights @ squares) / weights.sum(1)
    return found
