"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.training.settings import ScheduleParams


def learning_rate_factor(schedule: ScheduleParams, step: int, total_steps: int) -> float:
    """Factor on the peak learning rate for step `step` (from 0) of `total_steps`.

    Linear warm-up over the first round(warmup_ratio x total_steps) steps, the first of them already above zero; then
    down to `min_ratio` of the peak, which step `total_steps` (the first that is not made) would have: no step is spent
    at a rate of zero. cosine: Loshchilov and Hutter, 2017. wsd: constant until the last `decay_ratio` of the steps,
    over which it falls as 1 - sqrt(progress) (Haegele et al., 2024).
    """
    warmup = round(schedule.warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return schedule.min_ratio + (1 - schedule.min_ratio) * _decay(schedule, step, total_steps, progress)


def _decay(schedule: ScheduleParams, step: int, total_steps: int, progress: float) -> float:
    """Share of the way down that is left."""
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule.name == "wsd":
        length = max(1, round(schedule.decay_ratio * total_steps))
        return 1 - math.sqrt(max(0, step - total_steps + length) / length)
    power: float = (1 - progress) ** (schedule.power if schedule.name == "polynomial" else 1.0)
    return power
