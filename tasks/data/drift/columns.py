"""How columns beside the text differ: numbers by their distribution, names by their shares, the rest by its size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.data.drift.difference import Difference, shares
from tasks.data.reading.media import SIZES

NAME = "column"
"""The field of `Sizes` by which these differences are judged."""
LONGEST_NAME = 64
MOST_NAMES = 50
"""Different values of a column of names; one that has more holds ids or texts, whose shares say nothing."""


def measured(value: Any) -> float | str | None:
    """What the tests see of a value: numbers and short names as they are, of everything longer how long it is."""
    if value is None or isinstance(value, bool):
        return None if value is None else str(value)
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, bytes | list | dict) or (isinstance(value, str) and len(value) > LONGEST_NAME):
        return float(len(value))
    return str(value)


def measured_sizes(name: str, value: bytes | None, kind: str) -> dict[str, float | None]:
    """What the tests see of an image or a sound: its bytes and its sizes, never what it shows."""
    if value is None:
        return {f"{name} bytes": None}
    return {f"{name} bytes": float(len(value)), **{f"{name} {size}": of for size, of in SIZES[kind](value).items()}}


def column_differences(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """A test of every column that both sets of measured values have, except of those that hold ids."""
    names = sorted({*old[0]} & {*new[0]}) if old and new else []
    found = (_difference(name, [row.get(name) for row in old], [row.get(name) for row in new]) for name in names)
    return [one for one in found if one is not None]


def _difference(name: str, old: list[float | str | None], new: list[float | str | None]) -> Difference | None:
    from scipy.stats import ks_2samp

    before, after = ([value for value in values if isinstance(value, float)] for values in (old, new))
    if before and after and not any(isinstance(value, str) for value in (*old, *new)):
        found = ks_2samp(before, after)
        text = f"{name}: median {np.median(before):,.6g} -> {np.median(after):,.6g}"
        return Difference(f"{NAME} {name}", float(found.statistic), float(found.pvalue), text)
    if len({*old, *new}) > MOST_NAMES or not old or not new:
        return None
    words = [["missing" if value is None else str(value) for value in values] for values in (old, new)]
    return shares(f"{NAME} {name}", *words)
