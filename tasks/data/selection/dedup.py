"""Duplicates: equal texts, and near-equal ones by MinHash (Broder, 1997) with locality-sensitive hashing.

Each row has a signature, made where its file is read. Which rows go is decided over all signatures together, in one
order (held-out splits first), so the result depends on the rows alone, not on when or where they were read. Bands of
the signature propose pairs; a pair counts as near-duplicate if the share of equal values in the two signatures, which
estimates the Jaccard similarity of the two sets of word shingles, reaches the threshold. The first of a pair stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from tasks.data.hashing import FACTOR, Hashes, mixed
from tasks.data.words import runs_of_words
from tasks.stage import StageParams

SEED = 1
ROOM = 1
"""Slots for each value, at least, in the table by which values are found that are there more than once."""
HALF = np.uint64(32)
BLOCK = 1 << 16
"""Values looked at together there: what numpy needs for them fits a processor's cache."""
Signatures = npt.NDArray[np.uint32]
Mask = npt.NDArray[np.bool_]


class NearDuplicates(StageParams):
    """When two texts are too alike to both stay."""

    threshold: float = Field(
        0.85, gt=0, le=1, description="Estimated Jaccard similarity of the shingle sets from which on a text goes."
    )
    shingle: int = Field(
        5,
        ge=1,
        description="Words (or punctuation marks) in a shingle; characters where no spaces stand between words.",
    )
    num_perm: int = Field(
        128, ge=16, le=1024, multiple_of=16, description="MinHash permutations: more miss fewer pairs."
    )


class Dedup(StageParams):
    """Which duplicates are removed, over all splits together, so that no held-out text is in the training data."""

    exact: bool = Field(True, description="Drop texts equal to an earlier one.")
    near: NearDuplicates | None = Field(None, description="Drop near-duplicates as well. None: keep them.")


def signatures(texts: Sequence[str], settings: NearDuplicates) -> Signatures:
    """MinHash signature of each text's shingles, uint32 [len(texts), num_perm]."""
    from rensa import RMinHash

    shingles, offsets = runs_of_words(texts, settings.shingle, symbols=True)
    places = offsets.astype(np.uint64)
    matrix: Any = RMinHash.digest_matrix_from_flat_token_hashes(shingles, places, settings.num_perm, SEED)
    return np.array(matrix.to_rows(), np.uint32).reshape(len(texts), settings.num_perm)


def bands(found: Signatures, settings: NearDuplicates) -> Hashes:
    """Hash of each band of the signatures, uint64 [rows, bands]: rows that agree in one are looked at closely."""
    count = number_of_bands(settings.threshold, settings.num_perm)
    width = settings.num_perm // count
    parts = found.astype(np.uint64).reshape(len(found), count, width)
    total = np.zeros((len(found), count), np.uint64)
    for i in range(width):
        total = total * FACTOR + parts[:, :, i]
    return mixed(total)


def number_of_bands(threshold: float, num_perm: int) -> int:
    """Fewest bands with which a pair exactly at the threshold is proposed with probability >= 0.99.

    1 - (1 - s^r)^b is the chance that a pair of similarity s agrees on some band of r rows (Leskovec et al., 2014).
    """
    for count in (b for b in range(1, num_perm + 1) if num_perm % b == 0):
        if 1 - (1 - threshold ** (num_perm // count)) ** count >= 0.99:
            return count
    return num_perm


def first_of_equal(texts: Hashes) -> Mask:
    """Which rows' text hash [rows, 2] did not occur in an earlier row."""
    keep = ~repeated(texts[:, 0])
    maybe = np.flatnonzero(~keep)
    keep[maybe[np.unique(texts[maybe], axis=0, return_index=True)[1]]] = True
    return keep


def repeated(values: Hashes) -> Mask:
    """Which of the values are there more than once, [values] in and out.

    Each value writes its place into a slot of a table, and the last one there is compared with the others of its slot.
    What met another value there, a third of what is well spread, goes into a smaller table by its other bits, and so
    on: several times as fast as sorting, which is what is left for values that are not spread.
    """
    found, places = _met(values)
    again = values[places]
    if len(again) < len(values) // 2:
        again = again >> HALF | again << HALF
        found[places] |= repeated(again)
    else:
        again.sort()
        found[places] |= np.isin(values[places], again[1:][again[1:] == again[:-1]])
    return found


def _met(values: Hashes) -> tuple[Mask, npt.NDArray[np.integer[Any]]]:
    """(which values are the same as the last of their slot, places of those that met another one there)."""
    slots = 1 << (ROOM * len(values)).bit_length()
    last = np.empty(slots, np.int32 if len(values) < 1 << 31 else np.int64)
    blocks = [(begin, values[begin : begin + BLOCK]) for begin in range(0, len(values), BLOCK)]
    for begin, block in blocks:
        last[_slots(block, slots)] = np.arange(begin, begin + len(block), dtype=last.dtype)
    found, rest = np.zeros(len(values), np.bool_), [np.zeros(0, last.dtype)]
    for begin, block in blocks:
        there = last[_slots(block, slots)]
        early = np.flatnonzero(there != np.arange(begin, begin + len(block), dtype=last.dtype))
        same = values[there[early]] == block[early]
        found[begin + early[same]] = found[there[early[same]]] = True
        rest.append((begin + early[~same]).astype(last.dtype))
    return found, np.concatenate(rest)


def _slots(values: Hashes, count: int) -> npt.NDArray[np.int64]:
    """The slot of each value among `count`, a power of two, in the type that numpy indexes by without a conversion."""
    return (values & np.uint64(count - 1)).view(np.int64)


def first_of_near(found: Signatures, bands_of_each: Hashes, threshold: float, exempt: Mask) -> Mask:
    """Which rows stay when each is compared with the earlier ones that stay; `exempt` rows stay in any case."""
    keep = np.ones(len(found), np.bool_)
    kept: dict[tuple[int, int], list[int]] = {}
    for row, values in enumerate(bands_of_each.tolist()):
        keys = list(enumerate(values))
        others = sorted({other for key in keys for other in kept.get(key, ())})
        if others and not exempt[row] and (found[others] == found[row]).mean(axis=1).max() >= threshold:
            keep[row] = False
            continue
        for key in keys:
            kept.setdefault(key, []).append(row)
    return keep
