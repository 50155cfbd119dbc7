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
    """`global_batch` examples an optimizer step, `ranks` processes, `micro` examples a rank holds at once."""

    global_batch: int
    ranks: int
    micro: int

    @property
    def per_rank(self) -> int:
        """Examples one rank contributes to a step."""
        return self.global_batch // self.ranks

    @property
    def accumulation(self) -> int:
        """Forward and backward passes before the optimizer steps."""
        return self.per_rank // self.micro

    def halved(self) -> BatchSplit | None:
        """The same batch in micro-batches of half the size or, where that does not divide, less; None at one."""
        smaller = next((m for m in range(self.micro // 2, 0, -1) if self.per_rank % m == 0), None)
        return None if smaller is None else BatchSplit(self.global_batch, self.ranks, smaller)


def split_batch(
    global_batch: int, ranks: int, micro: int | Literal["auto"], *, where: str = "global_batch_size"
) -> BatchSplit:
    """Split a global batch; `micro="auto"` gives each rank its share in one piece.

    Raises StageError, naming the values that would work, if `ranks x micro` does not divide the global batch.
    """
    if global_batch % ranks:
        raise StageError(
            f"a global batch of {global_batch} does not divide over {ranks} processes",
            where=where,
            hint=f"Numbers of processes that divide {global_batch}: {_divisors(global_batch)}; "
            f"nearest global batch sizes: {_multiples(global_batch, ranks)}.",
        )
    per_rank = global_batch // ranks
    if micro == "auto":
        micro = per_rank
    if per_rank % micro:
        raise StageError(
            f"a global batch of {global_batch} over {ranks} processes is {per_rank} each, "
            f"which micro-batches of {micro} do not divide",
            where=where,
            hint=f"per_device_train_batch_size can be: {_divisors(per_rank)}; "
            f"nearest global batch sizes: {_multiples(global_batch, ranks * micro)}.",
        )
    return BatchSplit(global_batch, ranks, micro)


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)


def _multiples(n: int, unit: int) -> str:
    below = n // unit * unit
    return ", ".join(str(m) for m in (below, below + unit) if m)
