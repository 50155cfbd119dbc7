"""Language models that only count: what a trained one must beat."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Pairs = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Tokens and those that follow them, both [N]."""


def count_model_losses(train: Sequence[Pairs], heldout: Sequence[Pairs]) -> dict[str, float]:
    """Nats a token of count models on the heldout tokens, each at the smoothing that suits it best *there*.

    unigram: add-half counts. bigram: absolute discounting, interpolated with the Kneser-Ney continuation distribution
    or with the unigram (Ney, Essen and Kneser, 1994), whichever is lower. Choosing on the heldout data flatters the
    baselines, so beating them means something.
    """
    (first, second), (before, after) = (
        (np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1] for pair in pairs]))
        for pairs in (train, heldout)
    )
    size = 1 + max(int(tokens.max()) for tokens in (first, second, before, after) if len(tokens))
    counts = np.bincount(second, minlength=size) + 0.5
    unigram = counts / counts.sum()
    seen, seen_count = np.unique(first * size + second, return_counts=True)
    wanted = before * size + after
    place = np.minimum(np.searchsorted(seen, wanted), len(seen) - 1)
    pair = np.where(seen[place] == wanted, seen_count[place], 0)
    total = np.bincount(seen // size, weights=seen_count, minlength=size)[before]
    kinds = np.bincount(seen // size, minlength=size)[before]
    continuation = np.bincount(seen % size, minlength=size) + 0.5
    continuation /= continuation.sum()
    bigram = math.inf
    for discount in (0.5, 0.6, 0.7, 0.8, 0.9):
        left = np.where(total > 0, discount * kinds / np.maximum(total, 1), 1.0)
        direct = np.maximum(pair - discount, 0) / np.maximum(total, 1)
        for lower in (continuation, unigram):
            bigram = min(bigram, float(-np.log(direct + left * lower[after]).mean()))
    return {"unigram": float(-np.log(unigram[after]).mean()), "bigram": bigram}
