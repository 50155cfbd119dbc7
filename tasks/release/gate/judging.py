"""How a gate judges: what a candidate must reach, alone or against another model, and with how much certainty.

Quality metrics are judged with their sampling error: with `confidence` the bound of the paired bootstrap must meet the
limit, not only the point estimate (percentile method; Efron, 1979). Costs are measured, not sampled, and take no
confidence: `size_mb`, `parameters`, `peak_memory_mb`, `latency_p50_ms@1`, `latency_p99_ms@32`.

`f1_macro[source=*]` is a requirement on every slice: the worst decides. Its confidence is that of all slices together,
so each is held to its share of the doubt (Bonferroni). A slice with too few examples is never passed: named alone it
is refused; among others it is reported.

Before there is a champion, what compares with it, or is about examples it knew, does not apply and passes, and so does
what is about new examples where there are none (`tasks/evaluation/champion.py`).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.errors import StageError
from tasks.evaluation.champion import NAME
from tasks.metrics.direction import greater_is_better
from tasks.release.gate.outcome_sentence import outcome_sentence
from tasks.release.gate.requirement import ABSOLUTE, AT_MOST, RELATIVE, Requirement
from tasks.release.gate.slices import does_not_apply, every_slice, too_few

Array = npt.NDArray[np.float64]
Replicates = Mapping[str, Array]


@dataclass(frozen=True)
class Outcome:
    """How one requirement came out. `bound` is what was compared with the limit: the point, or its confidence bound.

    Where the requirement does not apply there is neither a value nor a bound.

    Of a requirement on every slice: the outcome of the worst, in `slices` that of each, and in `not_judged` how many
    examples those have that are too small.
    """

    metric: str
    rule: str
    limit: float
    confidence: float | None
    candidate: float | None
    against: float | None
    difference: float | None
    bound: float | None
    passed: bool
    sentence: str
    slices: tuple[Outcome, ...] = ()
    not_judged: Mapping[str, int] | None = None

    @property
    def margin(self) -> float:
        """How far on the right side of the limit."""
        if self.bound is None:
            return math.inf
        return self.limit - self.bound if self.rule in AT_MOST else self.bound - self.limit

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        if self.slices:
            return found | {"slices": [one.to_json() for one in self.slices]}
        return {name: value for name, value in found.items() if name not in ("slices", "not_judged")}


def judge(
    requirement: Requirement,
    scores: Mapping[str, Any],
    replicates: Mapping[str, Replicates],
    candidate: str,
    against: str | None,
) -> Outcome:
    """Hold one requirement against scores.json. `replicates`: model -> metric -> [R], paired over models.

    Raises StageError on an unknown metric, an undefined value, or a confidence for a cost.
    """
    if reason := does_not_apply(scores, requirement.metric, against if requirement.rule in RELATIVE else None):
        sentence = f"{requirement.metric} ({requirement.rule}) does not apply: {reason}."
        asked = (requirement.metric, requirement.rule, requirement.limit, requirement.confidence)
        return Outcome(
            *asked, candidate=None, against=None, difference=None, bound=None, passed=True, sentence=sentence
        )
    every = every_slice(scores, requirement.metric)
    if every is None:
        return _judge(requirement, scores, replicates, candidate, against)
    share = requirement.one_of(len(every.metrics))
    each = [share.model_copy(update={"metric": metric}) for metric in every.metrics]
    outcomes = [_judge(one, scores, replicates, candidate, against) for one in each]
    worst = min(outcomes, key=lambda outcome: (outcome.passed, outcome.margin))
    few = ", ".join(f"{value} ({n})" for value, n in every.few.items())
    note = f" Fewer than {every.asked} examples, so not judged: {few}." if few else ""
    return replace(
        worst,
        metric=requirement.metric,
        confidence=requirement.confidence,
        sentence=f"Of {len(outcomes)} slices the worst: {worst.sentence}{note}",
        slices=tuple(outcomes),
        not_judged=every.few,
    )


def _judge(
    requirement: Requirement,
    scores: Mapping[str, Any],
    replicates: Mapping[str, Replicates],
    candidate: str,
    against: str | None,
) -> Outcome:
    metric, rule = requirement.metric, requirement.rule
    mine = value_of(scores["models"][candidate], metric)
    theirs = value_of(scores["models"][against], metric) if against is not None and rule in RELATIVE else None
    higher_is_better = _higher_is_better(scores, candidate, metric)
    point = _quantity(rule, mine, theirs, higher_is_better)
    at_most = rule in AT_MOST
    bound = float(point)
    if requirement.confidence is not None:
        drawn = _drawn(replicates, metric, candidate)
        other = _drawn(replicates, metric, against) if theirs is not None and against is not None else None
        bound = _bound(_quantity(rule, drawn, other, higher_is_better), requirement.confidence, at_most)
    passed = bool(bound <= requirement.limit if at_most else bound >= requirement.limit)
    sentence = outcome_sentence(requirement, candidate, against, mine, theirs, float(point), bound, passed)
    if few := too_few(scores, metric):
        passed = False
        sentence = f"{metric} is of {few[0]} examples, and at least {few[1]} are required: refused."
    return Outcome(
        metric=metric,
        rule=rule,
        limit=requirement.limit,
        confidence=requirement.confidence,
        candidate=mine,
        against=theirs,
        difference=None if theirs is None else mine - theirs,
        bound=bound,
        passed=passed,
        sentence=sentence,
    )


def require_models(stage: str, models: Mapping[str, Any], wanted: Mapping[str, Sequence[str]]) -> None:
    """Raises StageError where a field names a model that an evaluation does not hold."""
    for field, names in wanted.items():
        for name in names:
            if name not in models:
                close = difflib.get_close_matches(name, models, n=1)
                guess = f"Did you mean {close[0]}? " if close else ""
                raise StageError(
                    f"{stage!r} evaluated no model named {name!r}",
                    where=field,
                    hint=f"{guess}It has: {', '.join(models)}.",
                )


def read_replicates(scores: Path) -> dict[str, Replicates]:
    """Bootstrap replicates of an evaluation's payload: model -> metric -> [R]."""
    from safetensors.numpy import load_file

    found: dict[str, dict[str, Array]] = {}
    for name, values in load_file(scores / "replicates.safetensors").items():
        model, _, metric = name.partition("/")  # a label may have a slash, a stage's name has none
        found.setdefault(model, {})[metric] = values
    return dict(found)


def verdict_on(
    candidate: str, against: str | None, scores: Mapping[str, Any], evaluation: str, outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """verdict.json: who was judged on what, and how each requirement came out. evaluation: digest of the scores."""
    models = scores["models"]
    other = models.get(against) if against else None
    return {
        "passed": all(outcome.passed for outcome in outcomes),
        "candidate": {"name": candidate, **models[candidate]["artifact"]},
        "against": {"name": against, **other["artifact"]} if other else None,
        **({NAME: scores[NAME]} if NAME in scores else {}),
        "data": scores["data"],
        "scores": evaluation,
        "resamples": scores["resamples"],
        "requirements": [outcome.to_json() for outcome in outcomes],
    }


def value_of(model: Mapping[str, Any], metric: str) -> float:
    """A metric or cost of one model of scores.json. Raises StageError, with the names there are, on an unknown one."""
    known = available(model)
    if metric not in known:
        close = difflib.get_close_matches(metric, known, n=1)
        guess = f"Did you mean {close[0]}? " if close else ""
        alike = [name for name in known if name.startswith(f"{metric.partition('[')[0]}[")] if "[" in metric else []
        shown = alike or [name for name in known if not name.endswith("]")]
        raise StageError(f"the scores hold no {metric!r}", where="require", hint=f"{guess}Known: {', '.join(shown)}.")
    value = known[metric]
    if value is None or not math.isfinite(value):
        raise StageError(
            f"{metric} is not defined on these examples",
            where="require",
            hint="Is a class missing from the test split, or from the slice?",
        )
    return float(value)


def available(model: Mapping[str, Any]) -> dict[str, float | None]:
    """Every metric and cost of one model of scores.json by the name a requirement uses."""
    found: dict[str, float | None] = {name: entry["value"] for name, entry in model["metrics"].items()}
    found |= {name: model.get(name) for name in ("size_mb", "parameters", "peak_memory_mb")}
    for size, quantiles in model.get("latency_ms", {}).items():
        found |= {f"latency_{q}_ms@{size}": value for q, value in quantiles.items() if q.startswith("p")}
    return found


def _higher_is_better(scores: Mapping[str, Any], model: str, metric: str) -> bool:
    entry = scores["models"][model]["metrics"].get(metric) or {}
    return bool(entry.get("greater_is_better", greater_is_better(metric)))


def _quantity(rule: str, mine: Any, theirs: Any, higher_is_better: bool) -> Any:
    """What the limit is compared with: the value, the drop, the gain or the ratio; numbers or arrays alike."""
    if rule in ABSOLUTE:
        return mine
    if rule in ("max_ratio", "min_ratio"):
        return np.divide(mine, theirs) if np.all(np.not_equal(theirs, 0)) else np.full(np.shape(mine), np.nan)[()]
    gain = mine - theirs if higher_is_better else theirs - mine
    return gain if rule == "min_gain" else -gain


def _drawn(replicates: Mapping[str, Replicates], metric: str, model: str) -> Array:
    if metric not in replicates[model]:
        raise StageError(
            f"{metric} is measured, not estimated from examples, and has no sampling error",
            where="require",
            hint="Leave `confidence` out for it.",
        )
    return replicates[model][metric]


def _bound(values: Array, confidence: float, upper: bool) -> float:
    """One-sided percentile bound; a resample without a value counts against the candidate."""
    worst = np.inf if upper else -np.inf
    known = np.where(np.isnan(values), worst, values)
    return float(
        np.quantile(known, confidence, method="higher") if upper else np.quantile(known, 1 - confidence, method="lower")
    )
