"""How a requirement came out, as one sentence for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.release.gate.requirement import Requirement


def outcome_sentence(
    requirement: Requirement,
    candidate: str,
    against: str | None,
    mine: float,
    theirs: float | None,
    point: float,
    bound: float,
    passed: bool,
) -> str:
    """`int8 is 0.01 worse than teacher in f1 (0.8 against 0.81); ...; a drop of at most 0.02 is required: passed.`

    mine, theirs: the models' values; point: what the rule asks about; bound: what was compared with the limit.
    """
    metric, limit = requirement.metric, requirement.limit
    quantity = {
        "min": f"{candidate} has {metric} {mine:.4g}",
        "max": f"{candidate} has {metric} {mine:.4g}",
        "max_drop": f"{candidate} is {_worse(point)} than {against} in {metric}",
        "min_gain": f"{candidate} is {_worse(-point)} than {against} in {metric}",
        "max_ratio": f"{metric} of {candidate} is {point:.4g} of that of {against}",
        "min_ratio": f"{metric} of {candidate} is {point:.4g} of that of {against}",
    }[requirement.rule]
    if theirs is not None:
        quantity += f" ({mine:.4g} against {theirs:.4g})"
    asked = {
        "min": "at least", "max": "at most", "max_drop": "a drop of at most", "min_gain": "a gain of at least",
        "max_ratio": "at most", "min_ratio": "at least",
    }[requirement.rule]  # fmt: skip
    sure = (
        f"; with {100 * requirement.confidence:.4g}% confidence {bound:.4g}"
        if requirement.confidence is not None
        else ""
    )
    return f"{quantity}{sure}; {asked} {limit:.4g} is required: {'passed' if passed else 'refused'}."


def _worse(by: float) -> str:
    return f"{abs(by):.4g} {'worse' if by > 0 else 'better'}" if by else "no worse or better"
