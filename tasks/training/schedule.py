"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from typing import Literal

ScheduleName = Literal["cosine", "linear", "constant"]


def learning_rate_factor(
    name: ScheduleName, step: int, total_steps: int, *, warmup_ratio: float = 0.0, min_ratio: float = 0.0
) -> float:
    """Factor on the peak learning rate for step `step` (from 0) of `total_steps`.

    Linear warm-up over the first round(warmup_ratio x total_steps) steps, the first of them already above zero; then
    cosine (Loshchilov and Hutter, 2017), linear, or no decay, down to `min_ratio` of the peak, which step
    `total_steps` (the first that is not made) would have: no step is spent at a rate of zero.
    """
    warmup = round(warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    if name == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total_steps - warmup)
    decay = 0.5 * (1 + math.cos(math.pi * progress)) if name == "cosine" else 1 - progress
    return min_ratio + (1 - min_ratio) * decay
