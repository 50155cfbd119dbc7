"""How a global batch is split: global = micro x accumulation x ranks. Pure and light, so a plan can check it.

The global batch decides the result; how it is split over ranks and micro-batches is execution and changes nothing
beyond the order of float additions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from infra.errors import StageError


@dataclass(frozen=True)
class BatchSplit:
    """`global_batch` examples an optimizer step, `ranks` processes, `micro` examples a rank holds at once.

    coupled: consecutive examples that have one loss together; micro-batches are multiples of it.
    """

    global_batch: int
    ranks: int
    micro: int
    coupled: int = 1

    @property
    def per_rank(self) -> int:
        """Examples one rank contributes to a step."""
        return self.global_batch // self.ranks

    @property
    def accumulation(self) -> int:
        """Forward and backward passes before the optimizer steps."""
        return self.per_rank // self.micro

    def halved(self) -> BatchSplit | None:
        """The same batch in micro-batches of half the size or, where that does not divide, less; None at the least."""
        return self.fitting(self.micro // 2)

    def fitting(self, most: int) -> BatchSplit | None:
        """The same batch in the largest micro-batches of at most so many examples; None where there are none."""
        fits = (m for m in range(most, self.coupled - 1, -1) if self.per_rank % m == 0 and m % self.coupled == 0)
        smaller = next(fits, None)
        return None if smaller is None else BatchSplit(self.global_batch, self.ranks, smaller, self.coupled)


def split_batch(
    global_batch: int,
    ranks: int,
    micro: int | Literal["auto"],
    *,
    coupled: int = 1,
    where: str = "global_batch_size",
) -> BatchSplit:
    """Split a global batch; `micro="auto"` gives each rank its share in one piece.

    coupled: see `BatchSplit`. Raises StageError, naming the values that would work, if `ranks x micro` does not divide
    the global batch, or `coupled` not a rank's share or a micro-batch.
    """
    if global_batch % ranks:
        raise StageError(
            f"a global batch of {global_batch} does not divide over {ranks} processes",
            where=where,
            hint=f"Numbers of processes that divide {global_batch}: {_divisors(global_batch)}; "
            f"nearest global batch sizes: {_multiples(global_batch, ranks)}.",
        )
    per_rank = global_batch // ranks
    if per_rank % coupled:
        raise StageError(
            f"a global batch of {global_batch} over {ranks} processes is {per_rank} each, "
            f"which groups of {coupled} examples do not divide",
            where=where,
            hint=f"Nearest global batch sizes: {_multiples(global_batch, ranks * coupled)}; "
            "or set the objective's group size to one that divides.",
        )
    if micro == "auto":
        micro = per_rank
    if per_rank % micro:
        raise StageError(
            f"a global batch of {global_batch} over {ranks} processes is {per_rank} each, "
            f"which micro-batches of {micro} do not divide",
            where=where,
            hint=f"per_device_train_batch_size can be: {_divisors(per_rank, coupled)}; "
            f"nearest global batch sizes: {_multiples(global_batch, ranks * micro)}.",
        )
    if micro % coupled:
        raise StageError(
            f"micro-batches of {micro} would tear apart groups of {coupled} examples, which have one loss together",
            where=where,
            hint=f"per_device_train_batch_size can be: {_divisors(per_rank, coupled)}.",
        )
    return BatchSplit(global_batch, ranks, micro, coupled)


def _divisors(n: int, unit: int = 1) -> str:
    return ", ".join(str(d) for d in range(unit, n + 1, unit) if n % d == 0)


def _multiples(n: int, unit: int) -> str:
    below = n // unit * unit
    return ", ".join(str(m) for m in (below, below + unit) if m)
