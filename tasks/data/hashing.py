"""Hashes of texts and of runs of hashes: 64 bits, the same on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying loses no bit


def short_hash(text: str) -> int:
    """64 bits of a text's BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def long_hash(text: str, values: Sequence[Any] = ()) -> tuple[int, int]:
    """128 bits of `content_digest`, as two numbers: no two rows that differ have the same."""
    found = content_digest(text, values)
    return int.from_bytes(found[:8], "little"), int.from_bytes(found[8:16], "little")


def content_digest(text: str, values: Sequence[Any] = ()) -> bytes:
    """SHA-256 of a row's text and of its values in other columns: equal rows have the same, others do not."""
    if not values:
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    found = hashlib.sha256()
    for value in (text, *values):
        raw = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        kind, raw = (type(value).__name__, raw) if isinstance(raw, bytes) else _spelled(raw)
        found.update(b"%s %d:" % (kind.encode(), len(raw)))
        found.update(raw)
    return found.digest()


def _spelled(value: Any) -> tuple[str, bytes]:
    """(type, bytes) of a value: of a list of numbers their 64 bits each, ten times faster than spelling them out."""
    first = type(value[0]) if isinstance(value, list) and value else None
    if first in (int, float):
        return f"list of {first.__name__}", np.asarray(value, "<i8" if first is int else "<f8").tobytes()
    return type(value).__name__, repr(value).encode()


def windows(hashes: Hashes, size: int) -> Hashes:
    """Hash of every run of `size` neighbours: a polynomial modulo 2^64, mixed."""
    count = len(hashes) - size + 1
    total = np.zeros(count, np.uint64)
    for i in range(size):
        total = total * FACTOR + hashes[i : i + count]
    return mixed(total)


def mixed(total: Hashes) -> Hashes:
    """Numbers spread over all 64 bits, one to one: the finaliser of splitmix64 (Steele et al., 2014)."""
    total = total ^ (total >> np.uint64(30))
    total *= np.uint64(0xBF58476D1CE4E5B9)
    total ^= total >> np.uint64(27)
    total *= np.uint64(0x94D049BB133111EB)
    return total ^ (total >> np.uint64(31))
