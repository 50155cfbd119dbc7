"""How one set of texts differs from another, each difference with a size and a probability.

A p-value says how often a difference at least this large would come about if both sets were drawn from one source; with
enough examples it is small for differences nobody cares about. So a difference counts as drift where it is unlikely
(after Holm's correction, 1979, for the number of tests) and large.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.data.hashing import mixed, windows
from tasks.data.words import word_hashes

Floats = npt.NDArray[np.float64]
FEATURES = 1 << 12
"""Buckets that word n-grams are hashed into."""


@dataclass(frozen=True)
class Difference:
    """One test. `size`: 0 (alike) to 1; `p`: of a difference as large by chance; `told`: for people."""

    name: str
    size: float
    p: float
    told: str
    drifted: bool = False


def differences(
    old: Sequence[Mapping[str, Any]],
    new: Sequence[Mapping[str, Any]],
    *,
    alpha: float,
    sizes: dict[str, float],
    seed: int,
) -> list[Difference]:
    """Every test on two sets of rows with `text`, and `label` where all have one, judged together."""
    from tasks.data.steps.language import detector

    old_texts, new_texts = [row["text"] for row in old], [row["text"] for row in new]
    found = [lengths([len(t) for t in old_texts], [len(t) for t in new_texts])]
    if all("label" in row for row in (*old, *new)):
        found.append(shares("label", [row["label"] for row in old], [row["label"] for row in new]))
    detect = detector()
    languages = [[detect(text)[0] for text in texts] for texts in (old_texts, new_texts)]
    found.append(shares("language", *languages))
    found.append(novelty(old_texts, new_texts, seed))
    found.append(ngrams(old_texts, new_texts, seed))
    return judged(found, alpha=alpha, sizes=sizes)


def lengths(old: Sequence[int], new: Sequence[int]) -> Difference:
    """Kolmogorov and Smirnov's largest distance between the two distributions of lengths."""
    from scipy.stats import ks_2samp

    found = ks_2samp(old, new)
    told = f"median {int(np.median(old)):,} -> {int(np.median(new)):,} characters"
    return Difference("length", float(found.statistic), float(found.pvalue), told)


def shares(name: str, old: Sequence[str], new: Sequence[str]) -> Difference:
    """Total variation distance of two sets of classes (labels, languages), with a chi-squared test."""
    from scipy.stats import chi2_contingency

    before, after = Counter(old), Counter(new)
    kinds = sorted(before.keys() | after.keys())
    table = np.array([[before[kind] for kind in kinds], [after[kind] for kind in kinds]], float)
    distribution = table / table.sum(axis=1, keepdims=True)
    moved = distribution[1] - distribution[0]
    p = float(chi2_contingency(table).pvalue) if len(kinds) > 1 else 1.0
    largest = sorted(range(len(kinds)), key=lambda i: -abs(moved[i]))[:3]
    told = ", ".join(f"{kinds[i]} {distribution[0][i]:.1%} -> {distribution[1][i]:.1%}" for i in largest)
    return Difference(name, float(np.abs(moved).sum() / 2), p, told)


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
    told = f"{observed:.1%} of the words are new; {expected:.1%} would be expected"
    return Difference("vocabulary", max(observed - expected, 0.0), p, told)


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


def judged(found: Sequence[Difference], *, alpha: float, sizes: dict[str, float]) -> list[Difference]:
    """The differences with `drifted` set: unlikely after Holm's correction, and at least as large as `sizes` says."""
    order = sorted(range(len(found)), key=lambda i: found[i].p)
    result = list(found)
    unlikely = True
    for rank, i in enumerate(order):
        unlikely = unlikely and found[i].p <= alpha / (len(found) - rank)
        result[i] = replace(found[i], drifted=unlikely and found[i].size >= sizes[found[i].name])
    return result


def sample(texts: Sequence[Any], most: int, key: Callable[[Any], str]) -> list[Any]:
    """At most `most` of them, those whose key hashes lowest: the same ones whenever they are there."""
    from tasks.data.hashing import short_hash

    return sorted(texts, key=lambda item: short_hash(key(item)))[:most]
