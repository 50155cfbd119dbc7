"""How a global batch is split: global = micro x accumulation x ranks. Pure and light, so a plan can check it.

The global batch decides the result; how it is split over ranks and micro-batches is execution and changes nothing
beyond the order of float additions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from infra.errors import StageError


@dataclass(frozen=True)
class BatchSplit:
    """`global_batch` examples an optimizer step, `ranks` processes, `micro` examples a rank holds at once.

    together: consecutive examples that have one loss, or one BatchNorm; micro-batches hold whole groups.
    """

    global_batch: int
    ranks: int
    micro: int
    together: int = 1

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
        fits = (m for m in range(most, self.together - 1, -1) if self.per_rank % m == 0 and m % self.together == 0)
        smaller = next(fits, None)
        return None if smaller is None else BatchSplit(self.global_batch, self.ranks, smaller, self.together)


def split_batch(
    global_batch: int,
    ranks: int,
    micro: int | Literal["auto"],
    *,
    examples_per_loss: int = 1,
    norm_group: int = 1,
    where: str = "global_batch_size",
) -> BatchSplit:
    """Split a global batch; `micro="auto"` gives each rank its share in one piece.

    examples_per_loss: consecutive examples that have one loss together. norm_group: those that BatchNorm normalises
    over; on one rank the last group may be smaller, and then the rank's share stays in one piece.
    Raises StageError, naming the values that would work, if `ranks x micro` does not divide the global batch, or groups
    not a rank's share or a micro-batch.
    """
    if global_batch % ranks:
        raise StageError(
            f"a global batch of {global_batch} does not divide over {ranks} processes",
            where=where,
            hint=f"Numbers of processes that divide {global_batch}: {_divisors(global_batch)}; "
            f"nearest global batch sizes: {_multiples(global_batch, ranks)}.",
        )
    per_rank = global_batch // ranks
    if per_rank % examples_per_loss:
        raise StageError(
            f"a global batch of {global_batch} over {ranks} processes is {per_rank} each, "
            f"which groups of {examples_per_loss} examples do not divide",
            where=where,
            hint=f"Nearest global batch sizes: {_multiples(global_batch, ranks * examples_per_loss)}; "
            "or set the objective's group size to one that divides.",
        )
    together = _with_norm_group(per_rank, ranks, examples_per_loss, norm_group, where)
    if micro == "auto":
        micro = per_rank
    if per_rank % micro:
        raise StageError(
            f"a global batch of {global_batch} over {ranks} processes is {per_rank} each, "
            f"which micro-batches of {micro} do not divide",
            where=where,
            hint=f"per_device_train_batch_size can be: {_divisors(per_rank, together)}; "
            f"nearest global batch sizes: {_multiples(global_batch, ranks * micro)}.",
        )
    if micro % together:
        why = "with one loss" if norm_group == 1 else "that BatchNorm normalises over"
        raise StageError(
            f"micro-batches of {micro} would tear apart groups of {together} examples {why}",
            where=where,
            hint=f"per_device_train_batch_size can be: {_divisors(per_rank, together)}."
            + (" Another `norm_group` is another result." if norm_group > 1 else ""),
        )
    return BatchSplit(global_batch, ranks, micro, together)


def _with_norm_group(per_rank: int, ranks: int, examples_per_loss: int, group: int, where: str) -> int:
    """Examples that a micro-batch must not tear apart, groups of BatchNorm included."""
    if group == 1:
        return examples_per_loss
    if per_rank < 2:
        raise StageError(
            "BatchNorm has nothing to normalise over with one example a step",
            where=where,
            hint="Raise global_batch_size, or set `freeze_batch_norm`.",
        )
    together = math.lcm(examples_per_loss, group)
    if per_rank % together == 0:
        return together
    if ranks == 1:
        return per_rank
    raise StageError(
        f"a global batch of {per_rank * ranks} over {ranks} processes is {per_rank} each, "
        f"which groups of {group} examples for BatchNorm do not divide",
        where=where,
        hint=f"Nearest global batch sizes: {_multiples(per_rank * ranks, together * ranks) or together * ranks}; "
        f"or `norm_group` can be: {_divisors(per_rank, max(2, examples_per_loss))}, which is another result.",
    )


def _divisors(n: int, unit: int = 1) -> str:
    return ", ".join(str(d) for d in range(unit, n + 1, unit) if n % d == 0)


def _multiples(n: int, unit: int) -> str:
    below = n // unit * unit
    return ", ".join(str(m) for m in (below, below + unit) if m)
