"""One requirement of a gate: a limit on a metric, alone or against another model."""

from __future__ import annotations

from pydantic import Field, model_validator

from tasks.stage import StageParams

ABSOLUTE = ("min", "max")
RELATIVE = ("max_drop", "min_gain", "max_ratio", "min_ratio")
AT_MOST = ("max", "max_drop", "max_ratio")


class Requirement(StageParams):
    """One limit on one metric."""

    metric: str = Field(
        min_length=1,
        description="A metric of the evaluation (of a slice: `f1_macro[source=tweets]`, of every one: "
        "`f1_macro[source=*]`; on changed examples: `f1_macro_drop[typos]`), or a cost such as `size_mb`, "
        "`latency_p50_ms@1`.",
    )
    min: float | None = Field(None, description="The candidate's value is at least this.")
    max: float | None = Field(None, description="The candidate's value is at most this.")
    max_drop: float | None = Field(None, description="The candidate is worse than `against` by at most this much.")
    min_gain: float | None = Field(None, description="The candidate is better than `against` by at least this much.")
    max_ratio: float | None = Field(None, gt=0, description="candidate / against is at most this.")
    min_ratio: float | None = Field(None, gt=0, description="candidate / against is at least this.")
    confidence: float | None = Field(
        None,
        ge=0.5,
        lt=1,
        description="Certainty asked of the limit, one-sided, e.g. 0.95. None: the point estimate decides.",
    )

    @model_validator(mode="after")
    def _one_rule(self) -> Requirement:
        given = [rule for rule in (*ABSOLUTE, *RELATIVE) if getattr(self, rule) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join((*ABSOLUTE, *RELATIVE))}")
        return self

    @property
    def rule(self) -> str:
        return next(rule for rule in (*ABSOLUTE, *RELATIVE) if getattr(self, rule) is not None)

    @property
    def limit(self) -> float:
        return float(getattr(self, self.rule))

    def one_of(self, count: int) -> Requirement:
        """What each of `count` is held to for all of them together to have this confidence (Bonferroni)."""
        if self.confidence is None:
            return self
        return self.model_copy(update={"confidence": 1 - (1 - self.confidence) / count})
