"""The order of training data: a pure function of (seed, epoch, index), so any position is reached in O(1).

Stream position `i` (counted over the whole training, epoch after epoch) lies in epoch `i // n` and is example
`permute(i % n)` of that epoch's own permutation. The permutation is a keyed Feistel network over the next power of
four, walked until it lands below n (Black and Rogaway, 2002: "Ciphers with Arbitrary Finite Domains"): a bijection
that needs no table, so resuming at step one million costs what step zero costs. Step `s` trains on stream positions
[s x global batch, (s + 1) x global batch), cut into equal runs for the ranks and those into micro-batches: ranks and
micro-batches never change which examples meet in a step. Nothing is dropped: a batch may span two epochs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from tasks.training.engine.batch import BatchSplit

ROUNDS = 4


@dataclass(frozen=True)
class Permutation:
    """A pseudo-random bijection of range(size), chosen by (seed, epoch). A call costs a few microseconds."""

    size: int
    seed: int
    epoch: int

    @cached_property
    def _half_bits(self) -> int:
        return max(1, ((self.size - 1).bit_length() + 1) // 2)

    @cached_property
    def _round_keys(self) -> list[int]:
        text = f"forgeline.order:{self.seed}:{self.epoch}:{self.size}".encode()
        key = hashlib.sha256(text).digest()
        return [int.from_bytes(key[8 * i : 8 * i + 8], "little") for i in range(ROUNDS)]

    def __call__(self, index: int) -> int:
        """The example at place `index` (0 <= index < size) of this epoch."""
        if not 0 <= index < self.size:
            raise IndexError(f"{index} is not in range({self.size})")
        # The network permutes range(4 ** half_bits); following its cycle until it re-enters range(size) is a bijection
        # of range(size), because the cycle through `index` comes back to `index`.
        value = self._encrypt(index)
        while value >= self.size:
            value = self._encrypt(value)
        return value

    def _encrypt(self, value: int) -> int:
        half, mask = self._half_bits, (1 << self._half_bits) - 1
        left, right = value >> half, value & mask
        for key in self._round_keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        return (left << half) | right


def _mix(x: int) -> int:
    """SplitMix64's finaliser (Steele, Lea and Flood, 2014): every input bit reaches every output bit."""
    x &= 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 31)


@dataclass(frozen=True)
class Sampler:
    """Which of `size` examples each step, rank and micro-batch trains on."""

    size: int
    seed: int
    split: BatchSplit

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError("cannot sample from no examples")

    def example(self, position: int) -> int:
        """The example at a position of the endless stream."""
        epoch, place = divmod(position, self.size)
        return self._permutation(epoch)(place)

    def global_batch(self, step: int) -> list[int]:
        """The examples of step `step` (from 0), whoever trains on them."""
        first = step * self.split.global_batch
        return [self.example(i) for i in range(first, first + self.split.global_batch)]

    def micro_batches(self, step: int, rank: int) -> Iterator[tuple[int, list[int]]]:
        """This rank's part of a step: (stream position of the first example, examples) for each micro-batch."""
        first = step * self.split.global_batch + rank * self.split.per_rank
        for start in range(first, first + self.split.per_rank, self.split.micro):
            yield start, [self.example(i) for i in range(start, start + self.split.micro)]

    def seen(self, steps: int) -> list[int]:
        """The distinct examples met in the first `steps` steps, sorted."""
        count = steps * self.split.global_batch
        return list(range(self.size)) if count >= self.size else sorted(self.example(i) for i in range(count))

    def _permutation(self, epoch: int) -> Permutation:
        cached = self.__dict__.get("_cached")
        if cached is None or cached.epoch != epoch:
            cached = Permutation(self.size, self.seed, epoch)
            self.__dict__["_cached"] = cached
        return cached


def stream_seed(seed: int, position: int) -> int:
    """Seed of the random numbers drawn for the example, or the micro-batch, at a position of the stream."""
    return int.from_bytes(hashlib.sha256(f"forgeline.noise:{seed}:{position}".encode()).digest()[:7], "little")


def steps_for_epochs(size: int, epochs: float, global_batch: int) -> int:
    """Optimizer steps that show every example at least `epochs` times (for whole epochs)."""
    return max(1, -(-round(size * epochs) // global_batch))
