"""One test: how large a difference is, and how probable by chance; which of several count as drift."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tasks.data.hashing import short_hash


@dataclass(frozen=True)
class Difference:
    """One test. `size`: 0 (alike) to 1; `p`: of a difference as large by chance; `told`: for people."""

    name: str
    size: float
    p: float
    told: str
    drifted: bool = False


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
    text = ", ".join(f"{kinds[i]} {distribution[0][i]:.1%} -> {distribution[1][i]:.1%}" for i in largest)
    return Difference(name, float(np.abs(moved).sum() / 2), p, text)


def judged(found: Sequence[Difference], *, alpha: float, sizes: dict[str, float]) -> list[Difference]:
    """The differences with `drifted` set: unlikely after Holm's correction, and at least as large as `sizes` says."""
    order = sorted(range(len(found)), key=lambda i: found[i].p)
    result = list(found)
    unlikely = True
    for rank, i in enumerate(order):
        unlikely = unlikely and found[i].p <= alpha / (len(found) - rank)
        result[i] = replace(found[i], drifted=unlikely and found[i].size >= sizes[found[i].name.split()[0]])
    return result


def sample(texts: Sequence[Any], most: int, key: Callable[[Any], str]) -> list[Any]:
    """At most `most` of them, those whose key hashes lowest: the same ones whenever they are there."""
    return sorted(texts, key=lambda item: short_hash(key(item)))[:most]
