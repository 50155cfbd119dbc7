"""Duplicates: equal texts, and near-equal ones by MinHash (Broder, 1997) with locality-sensitive hashing.

LSH only proposes pairs; a pair counts as near-duplicate if the exact Jaccard similarity of the two sets of word
shingles reaches the threshold. The first row in the given order stays, so the result is a function of that order.
"""

from __future__ import annotations

import hashlib
import re

from pydantic import Field

from tasks.data.reading import Row
from tasks.stage import StageParams

WORD = re.compile(r"\w+|[^\w\s]")
SEED = 1


class NearDuplicates(StageParams):
    """When two texts are too alike to both stay."""

    threshold: float = Field(
        0.85, gt=0, le=1, description="Jaccard similarity of the shingle sets from which on a text goes."
    )
    shingle: int = Field(5, ge=1, description="Words (or punctuation marks) in a shingle.")
    num_perm: int = Field(
        128, ge=16, le=1024, multiple_of=16, description="MinHash permutations: more miss fewer pairs."
    )


class Dedup(StageParams):
    """Which duplicates are removed, over all splits together, so that no held-out text is in the training data."""

    exact: bool = Field(True, description="Drop texts equal to an earlier one.")
    near: NearDuplicates | None = Field(None, description="Drop near-duplicates as well. None: keep them.")


def drop_exact(rows: list[Row]) -> list[Row]:
    """Rows whose text did not occur before."""
    seen: set[bytes] = set()
    kept = []
    for row in rows:
        digest = hashlib.sha256(row.text.encode("utf-8", "surrogatepass")).digest()
        if digest not in seen:
            seen.add(digest)
            kept.append(row)
    return kept


def shingles(text: str, size: int) -> set[str]:
    """Every run of `size` words, or the whole text where it has fewer."""
    words = WORD.findall(text)
    if len(words) <= size:
        return {" ".join(words)}
    return {" ".join(words[i : i + size]) for i in range(len(words) - size + 1)}


def drop_near(rows: list[Row], settings: NearDuplicates) -> list[Row]:
    """Rows that are not near-duplicates of an earlier kept row."""
    from rensa import RMinHash, RMinHashLSH

    index = RMinHashLSH(settings.threshold, settings.num_perm, _bands(settings.threshold, settings.num_perm))
    kept: list[Row] = []
    for start in range(0, len(rows), 256):
        batch = rows[start : start + 256]
        sets = [shingles(row.text, settings.shingle) for row in batch]
        sketches = RMinHash.from_token_sets(sets, settings.num_perm, SEED)
        for row, mine, sketch in zip(batch, sets, sketches, strict=True):
            near = (kept[k] for k in sorted(index.query(sketch)))
            if any(_jaccard(mine, shingles(other.text, settings.shingle)) >= settings.threshold for other in near):
                continue
            index.insert(len(kept), sketch)
            kept.append(row)
    return kept


def _jaccard(a: set[str], b: set[str]) -> float:
    both = len(a & b)
    return both / (len(a) + len(b) - both)


def _bands(threshold: float, num_perm: int) -> int:
    """Fewest bands with which a pair exactly at the threshold is proposed with probability >= 0.99.

    1 - (1 - s^r)^b is the chance that a pair of similarity s agrees on some band of r rows (Leskovec et al., 2014).
    """
    for bands in (b for b in range(1, num_perm + 1) if num_perm % b == 0):
        if 1 - (1 - threshold ** (num_perm // bands)) ** bands >= 0.99:
            return bands
    return num_perm
