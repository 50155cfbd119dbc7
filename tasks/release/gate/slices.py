"""What scores.json says of the slices its models were judged on, and of changed examples."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra.errors import StageError
from tasks.evaluation.champion import KNOWN, NAME, NEW, SINCE
from tasks.evaluation.slices import slice_name
from tasks.release.evidence import as_object
from tasks.release.readable import is_number

EVERY = "=*]"


@dataclass(frozen=True)
class EverySlice:
    """What `f1_macro[source=*]` stands for: the metrics that are judged, and the slices too small for it.

    few: slice -> its number of examples. Where all are too small, all are judged, so that all are refused; asked: how
    many examples a slice needs.
    """

    metrics: list[str]
    few: dict[str, int]
    asked: int


def every_slice(scores: Mapping[str, Any], metric: str) -> EverySlice | None:
    """The slices that `metric[slicing=*]` names; None for another metric. Raises StageError on an unknown slicing."""
    if not metric.endswith(EVERY):
        return None
    name, _, slicing = metric.removesuffix(EVERY).rpartition("[")
    known = scores.get("slices", {})
    if slicing not in known:
        close = difflib.get_close_matches(slicing, known, n=1)
        guess = f"Did you mean {close[0]}? " if close else ""
        raise StageError(
            f"the scores have no slices by {slicing!r}",
            where="require",
            hint=f"{guess}They have: {', '.join(known)}." if known else "Give their evaluate stage `slices`.",
        )
    sizes, asked = known[slicing]["n"], known[slicing]["min_examples"]
    few = {value: n for value, n in sizes.items() if n < asked}
    if len(few) == len(sizes):
        few = {}
    return EverySlice([f"{name}{slice_name(slicing, value)}" for value in sizes if value not in few], few, asked)


def awaited(scores: Mapping[str, Any], against: str) -> bool:
    """Whether a model to compare with is a champion that is not there yet."""
    return against == NAME and NAME in scores and not scores[NAME]["there"]


def does_not_apply(scores: Mapping[str, Any], metric: str, against: str | None) -> str | None:
    """Why a requirement asks nothing of these scores: there is no champion yet, or no new example; None if it does."""
    champion = scores.get(NAME)
    if champion is None:
        return None
    of_slice = metric.rpartition("[")[2].removesuffix("]") if metric.endswith("]") else ""
    since = of_slice.partition("=")[0] == SINCE
    if not champion["there"] and (since or (against and awaited(scores, against))):
        return f"{champion['ref']} points to no model yet"
    if of_slice in (f"{SINCE}={KNOWN}", f"{SINCE}={NEW}") and of_slice.partition("=")[2] not in _sizes(scores):
        return f"no example is {of_slice.partition('=')[2]}"
    return None


def _sizes(scores: Mapping[str, Any]) -> Mapping[str, int]:
    found: Mapping[str, int] = scores.get("slices", {}).get(SINCE, {}).get("n", {})
    return found


def too_few(scores: Mapping[str, Any], metric: str) -> tuple[int, int] | None:
    """(examples, how many are asked for) where a metric is of a slice that is too small to be judged."""
    for slicing, found in scores.get("slices", {}).items():
        for value, n in found["n"].items():
            if metric.endswith(slice_name(slicing, value)) and n < found["min_examples"]:
                return n, found["min_examples"]
    return None


def conditions(scores: Mapping[str, Any]) -> dict[str, str]:
    """What follows the names of metrics that are not of all examples as they are -> what it is of, for people."""
    found = {}
    for by, slicing in as_object(scores.get("slices")).items():
        asked = as_object(slicing).get("min_examples")
        for value, n in as_object(as_object(slicing).get("n")).items():
            few = is_number(n) and is_number(asked) and n < asked
            found[slice_name(by, value)] = (
                f"{int(n) if is_number(n) else 0:,} examples{', too few to be judged' if few else ''}"
            )
    return {**found, **{f"[{name}]": "examples changed" for name in as_object(scores.get("perturbations"))}}
