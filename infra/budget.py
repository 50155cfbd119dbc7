"""The `budget` section of a pipeline file, and what of it is spent.

    budget: {hours: 2, core_hours: 10, money: 5.0, price_per_core_hour: 0.04, price_per_gpu_hour: 2.5}

Every limit holds for one `forgeline run`; running again begins with a fresh one. Prices alone limit nothing: they are
what the ledger reckons with.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field, model_validator

from infra.execution import Settings

HOUR = 3600.0


@dataclass(frozen=True)
class Spent:
    """Seconds of a run, and of cores and GPUs in jobs: slots held times seconds. As a rate: each per second."""

    seconds: float = 0.0
    core_seconds: float = 0.0
    gpu_seconds: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.seconds + other.seconds,
            self.core_seconds + other.core_seconds,
            self.gpu_seconds + other.gpu_seconds,
        )

    def __mul__(self, factor: float) -> Spent:
        return Spent(self.seconds * factor, self.core_seconds * factor, self.gpu_seconds * factor)


class Budget(Settings):
    """What a run may cost. It stops before it costs more; run it again to continue."""

    hours: float | None = Field(None, gt=0, description="Hours from the start of a run to its end.")
    core_hours: float | None = Field(None, gt=0, description="Hours of CPU cores: slots that jobs hold, times hours.")
    gpu_hours: float | None = Field(None, gt=0, description="Hours of GPUs that jobs hold.")
    money: float | None = Field(None, gt=0, description="What cores and GPUs may cost together; needs a price.")
    price_per_core_hour: float = Field(0.0, ge=0, description="Price of a core for an hour, in any currency.")
    price_per_gpu_hour: float = Field(0.0, ge=0, description="Price of a GPU for an hour, in the same currency.")
    reserve: float = Field(
        60.0,
        ge=0,
        description="Seconds kept for stopping: so long before a limit, jobs are asked to stop and training runs "
        "commit a checkpoint. What still runs when they are over is ended.",
    )

    @model_validator(mode="after")
    def _can_be_kept(self) -> Budget:
        if self.money is not None and not self.priced:
            raise ValueError("money needs price_per_core_hour or price_per_gpu_hour")
        if self.hours is not None and self.hours * HOUR <= self.reserve:
            raise ValueError(f"hours is {self.hours * HOUR:g} s, no more than the reserve of {self.reserve:g} s")
        return self

    @property
    def priced(self) -> bool:
        return self.price_per_core_hour > 0 or self.price_per_gpu_hour > 0

    @property
    def limited(self) -> bool:
        return any(limit is not None for limit, _ in self._limits(Spent()).values())

    def cost(self, spent: Spent) -> float:
        """In the currency of the prices."""
        cores, gpus = spent.core_seconds / HOUR, spent.gpu_seconds / HOUR
        return cores * self.price_per_core_hour + gpus * self.price_per_gpu_hour

    def over(self, spent: Spent, more: Spent) -> str:
        """Which limit `more` on top of `spent` would reach: `the budget of 2 hours (1.99 spent)`; empty if none."""
        after = self._limits(spent + more)
        for name, (limit, now) in self._limits(spent).items():
            if limit is not None and after[name][1] >= limit:
                return f"the budget of {limit:g} {name.replace('_', ' ')} ({now:.3g} spent)"
        return ""

    def _limits(self, spent: Spent) -> dict[str, tuple[float | None, float]]:
        return {
            "hours": (self.hours, spent.seconds / HOUR),
            "core_hours": (self.core_hours, spent.core_seconds / HOUR),
            "gpu_hours": (self.gpu_hours, spent.gpu_seconds / HOUR),
            "money": (self.money, self.cost(spent)),
        }
