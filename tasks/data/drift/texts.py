"""How texts differ: their lengths, languages and words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tasks.data.drift.difference import Difference, shares
from tasks.data.hashing import mixed, windows
from tasks.data.words import word_hashes

Floats = npt.NDArray[np.float64]
FEATURES = 1 << 12
"""Buckets that word n-grams are hashed into."""


def text_differences(old: Sequence[str], new: Sequence[str], seed: int) -> list[Difference]:
    """Every test of texts: their lengths, languages and words."""
    from tasks.data.steps.language import detector

    detect = detector()
    languages = [[detect(text)[0] for text in texts] for texts in (old, new)]
    return [
        lengths([len(t) for t in old], [len(t) for t in new]),
        shares("language", *languages),
        novelty(old, new, seed),
        ngrams(old, new, seed),
    ]


def lengths(old: Sequence[int], new: Sequence[int]) -> Difference:
    """Kolmogorov and Smirnov's largest distance between the two distributions of lengths."""
    from scipy.stats import ks_2samp

    found = ks_2samp(old, new)
    text = f"median {int(np.median(old)):,} -> {int(np.median(new)):,} characters"
    return Difference("length", float(found.statistic), float(found.pvalue), text)


def novelty(old: Sequence[str], new: Sequence[str], seed: int, rounds: int = 200) -> Difference:
    """Share of the new texts' words that no old text has, beyond what one half of the old has over the other.

    p: permutations of whose words are whose; the new texts stand against as many old ones as are left out of the rest.
    """
    bags = [set(word_hashes([text.lower()], symbols=True)[0].tolist()) for text in [*old, *new]]
    count, take = len(old), min(len(new), len(old) // 2)
    random = np.random.default_rng(seed)

    def unknown(chosen: Sequence[int], known: Sequence[int]) -> float:
        vocabulary = set().union(*(bags[i] for i in known))
        words = [word for i in chosen for word in bags[i]]
        return sum(word not in vocabulary for word in words) / max(len(words), 1)

    fresh = random.permutation(np.arange(count, len(bags)))[:take]
    old_order = random.permutation(count)
    observed = unknown(fresh.tolist(), old_order[take:].tolist())
    expected = unknown(old_order[:take].tolist(), old_order[take:].tolist())
    pool = np.concatenate([old_order, fresh])
    drawn = []
    for _ in range(rounds):
        order = random.permutation(pool)
        drawn.append(unknown(order[:take].tolist(), order[2 * take :].tolist()))
    p = (1 + sum(value >= observed for value in drawn)) / (1 + rounds)
    text = f"{observed:.1%} of the words are new; {expected:.1%} would be expected"
    return Difference("vocabulary", max(observed - expected, 0.0), p, text)


def ngrams(old: Sequence[str], new: Sequence[str], seed: int, rounds: int = 500) -> Difference:
    """Distance of the texts' words and pairs of words: a kernel two-sample test (Gretton et al., 2012).

    The statistic is the squared distance of the two mean vectors of hashed, length-normalised counts; p by permutation.
    size: 1 - cosine of the two means.
    """
    vectors = np.stack([_vector(text) for text in [*old, *new]])
    kernel = vectors @ vectors.T
    count, total = len(old), len(vectors)
    random = np.random.default_rng(seed)

    def statistic(is_old: Floats) -> float:
        weights = is_old / is_old.sum() - (1 - is_old) / (1 - is_old).sum()
        return float(weights @ kernel @ weights)

    truth = np.zeros(total)
    truth[:count] = 1.0
    observed = statistic(truth)
    drawn = [statistic(random.permutation(truth)) for _ in range(rounds)]
    p = (1 + sum(value >= observed for value in drawn)) / (1 + rounds)
    means = vectors[:count].mean(0), vectors[count:].mean(0)
    cosine = float(means[0] @ means[1] / max(np.linalg.norm(means[0]) * np.linalg.norm(means[1]), 1e-12))
    return Difference("words", 1.0 - cosine, p, f"cosine of the mean texts {cosine:.3f}")


def _vector(text: str) -> Floats:
    hashes = word_hashes([text.lower()], symbols=True)[0][:2000]
    grams = np.concatenate([mixed(hashes), windows(hashes, 2)]) if len(hashes) > 1 else mixed(hashes)
    counts = np.bincount((grams % np.uint64(FEATURES)).astype(np.int64), minlength=FEATURES).astype(float)
    weighed = np.sqrt(counts)
    norm = np.linalg.norm(weighed)
    return np.asarray(weighed / norm if norm else weighed)
