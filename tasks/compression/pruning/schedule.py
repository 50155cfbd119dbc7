"""How much is left of a model while it is pruned step by step. Pure and light: a plan reads it.

With x the share of the way from step t0 to step t1 that is done, and s_f the sparsity asked for:

    s_t = s_f (1 - (1 - x)^3)       (Zhu and Gupta, 2017, equation 1, from s_0 = 0)

Most weights go early, while many are redundant; the last ones slowly, and after t1 the rest heals.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tasks.stage import StageParams

POWERS = {"cubic": 3, "linear": 1}


class PruningSchedule(StageParams):
    """When weights are removed during the healing, and how many."""

    shape: Literal["cubic", "linear"] = Field(
        "cubic", description="How sparsity rises: fast, then ever slower (Zhu and Gupta, 2017); or evenly."
    )
    every: int = Field(10, ge=1, description="Steps between removals.")
    begin: float = Field(
        0.0, ge=0, lt=1, description="Share of the steps before it begins, in which all weights learn."
    )
    until: float = Field(
        0.7, gt=0, le=1, description="Share of the steps after which all that goes has gone, and the rest heals."
    )

    @model_validator(mode="after")
    def _forward(self) -> PruningSchedule:
        if self.begin >= self.until:
            raise ValueError(f"`begin: {self.begin}` is not before `until: {self.until}`")
        return self

    def kept(self, step: int, total_steps: int, keep: float) -> float | None:
        """Share of the weights that stays from step `step` (from 1) of `total_steps` on, `keep` in the end.

        None: nothing is removed after this step. The last removal is at the end of the way, however many `every` are.
        """
        last = max(1, round(self.until * total_steps))
        first = min(last - 1, round(self.begin * total_steps))
        if step != last and (not first < step < last or (step - first) % self.every):
            return None
        left = (last - step) / (last - first)
        return keep + (1 - keep) * left ** POWERS[self.shape]
