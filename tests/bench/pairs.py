"""Two living arms taking turns, and what their pairs of blocks say."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.bench.arm import Arm
from tests.bench.gate import Block
from tests.bench.result import Figure, Measurement, Settings
from tests.bench.workload import Workload

LOSS_TOLERANCE = 2e-4
RESAMPLES = 10_000
SEED = 20


@dataclass(frozen=True)
class Paired:
    """What two arms did in turn; `own` are the figures each told at its end."""

    first: list[Block]
    second: list[Block]
    own: tuple[dict[str, float], dict[str, float]]
    losses: tuple[list[float], list[float]]


def interleave(first: str, second: str, workload: Workload, settings: Settings) -> Paired:
    """Blocks of two arms in turn: A B, B A, A B ..., so that a machine that slows down slows both."""
    with contextlib.ExitStack() as stack:
        arms = []
        for side, name in enumerate((first, second)):
            arm = stack.enter_context(Arm(name, workload, settings.folder / f"{side}-{name}"))
            arm.warm_up()
            arms.append(arm)
        blocks: tuple[list[Block], list[Block]] = ([], [])
        for pair in range(workload.blocks):
            for side in (0, 1) if pair % 2 == 0 else (1, 0):
                blocks[side].append(arms[side].block())
        own = (arms[0].finish(), arms[1].finish())
        return Paired(*blocks, own, (arms[0].losses, arms[1].losses))


def throughput(
    opponent: str, zero_stage: int, ranks: int, settings: Settings, *, first: str = "forgeline_train"
) -> Measurement:
    """Tokens a second of `first` over the opponent's, if both saw the same losses."""
    workload = Workload(zero_stage=zero_stage, ranks=ranks, steps=settings.steps, blocks=settings.pairs)
    found = interleave(first, opponent, workload, settings)
    ratios = [theirs.seconds / ours.seconds for ours, theirs in zip(found.first, found.second, strict=True)]
    own = found.own[0]
    checkpoints = int(own.get("checkpoints", 0))
    incomparable = difference(*found.losses)
    if not incomparable and "checkpoints" in own and checkpoints < workload.blocks:
        incomparable = f"{checkpoints} checkpoints fell into {workload.blocks} blocks"
    rates = [
        workload.tokens_per_block / float(np.median([block.seconds for block in blocks]))
        for blocks in (found.first, found.second)
    ]
    return of_median(
        ratios,
        figures=[Figure(first.removesuffix("_train"), rates[0], "tokens/s"), Figure(opponent, rates[1], "tokens/s")],
        incomparable=incomparable,
        busy=float(np.mean([block.busy for block in (*found.first, *found.second)])),
        details={
            "ratios": ratios,
            "seconds": [block.seconds for block in found.first],
            "rest_seconds": [block.rest for block in found.first],
            "opponent_seconds": [block.seconds for block in found.second],
            "cpu_ratio": float(
                np.median([b.cpu_seconds / a.cpu_seconds for a, b in zip(found.first, found.second, strict=True)])
            ),
            "cores_used": float(np.median([b.cpu_seconds / b.seconds for b in (*found.first, *found.second)])),
            "largest_loss_difference": largest_difference(*found.losses),
            "last_loss": found.losses[0][-1],
            "checkpoint_stall_seconds": own.get("stall_seconds", 0.0) / max(checkpoints, 1),
        },
    )


def of_median(values: Sequence[float], **more: Any) -> Measurement:
    """The median of some values with its interval; `more`: the other fields of a Measurement."""
    low, high = median_interval(values)
    return Measurement(float(np.median(values)), low, high, "95% bootstrap", **more)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Two-sided 95% percentile interval of the median under resampling; the same for the same values."""
    drawn = np.random.default_rng(SEED).choice(np.asarray(values), (RESAMPLES, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(low), float(high)


def largest_difference(first: Sequence[float], second: Sequence[float]) -> float:
    return max((abs(a - b) for a, b in zip(first, second, strict=True)), default=math.inf)


def difference(first: Sequence[float], second: Sequence[float]) -> str:
    """Empty if the losses of every step agree; else where they part. Speed counts only where the work was the same."""
    if len(first) != len(second) or not first:
        return f"{len(first)} steps against {len(second)}"
    for step, (a, b) in enumerate(zip(first, second, strict=True), 1):
        if not abs(a - b) <= LOSS_TOLERANCE:
            return f"losses differ from step {step}: {a:.5f} against {b:.5f}"
    return ""
