"""Hashes of texts and of runs of hashes: 64 bits, the same on every machine."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying loses no bit


def short_hash(text: str) -> int:
    """64 bits of a text's BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def long_hash(text: str) -> tuple[int, int]:
    """128 bits of a text's SHA-256, as two numbers: no two texts that differ have the same."""
    found = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(found[:8], "little"), int.from_bytes(found[8:16], "little")


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
