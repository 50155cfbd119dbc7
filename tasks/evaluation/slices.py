"""Slices: parts of the frozen examples on which a model is judged by itself, because an average hides them.

    slices:
      source: {by: id, pattern: "[a-z]+"}       # what a regular expression finds in a column
      language: {by: language}                  # each value of a column the dataset keeps
      length: {by: text, edges: [60, 120]}      # ranges: <60, 60..120, >=120
      must: {by: id, listed: [a.jsonl#3]}       # `listed` and `others`: what must not get worse, by name

A metric of a slice is called `f1_macro[source=tweets]`, that of class spam `recall@spam[source=tweets]`. It is the
metric where an example outside has weight 0, as one that a bootstrap did not draw; so all slices and all models share
the resamples of the whole, and differences stay paired.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator, model_validator

from infra.errors import StageError
from infra.regular_expression import compiled, time_limit
from infra.time_limit import TimeLimit, TookTooLong
from tasks.data.plain_values import plain, plain_text
from tasks.stage import AddedLater, StageParams

if TYPE_CHECKING:
    from tasks.stage import InputArtifact

Array = npt.NDArray[np.float64]
Masks = dict[str, dict[str, npt.NDArray[np.bool_]]]
"""slicing -> slice -> [N], whether an example is in it."""
MOST = 50
NO_VALUE = "(none)"


class Slicing(StageParams):
    """How the examples are divided."""

    by: str = Field(min_length=1, description="Column of the dataset. Each of its values is a slice.")
    pattern: str | None = Field(
        None,
        description="Regular expression: the value is what it first finds in the column, or its first group there.",
    )
    edges: list[float] = Field(
        default_factory=list,
        description="Ranges instead of values: below the first, from each to below the next, from the last on. A text "
        "is measured in characters, because tokens are each model's own.",
    )
    listed: Annotated[list[str], AddedLater()] = Field(
        default_factory=list, description="Values of the column that make the slice `listed`; the rest is `others`."
    )
    min_examples: int = Field(30, ge=1, description="A slice with fewer is reported, and no gate lets it pass.")

    @field_validator("listed")
    @classmethod
    def _spelled_as_read(cls, listed: list[str]) -> list[str]:
        """Values as the rows' are compared with them (`tasks/data/plain_values.py`)."""
        return [name for name in map(plain_text, listed) if name]

    @model_validator(mode="after")
    def _one_way(self) -> Slicing:
        if sum(map(bool, (self.pattern is not None, self.edges, self.listed))) > 1:
            raise ValueError("`pattern` makes values, `edges` ranges and `listed` two slices: give one")
        if any(low >= high for low, high in pairwise(self.edges)):
            raise ValueError("`edges` must rise")
        if self.pattern is not None:
            try:
                compiled(self.pattern)
            except ValueError as error:
                raise ValueError(f"`pattern` is {error}") from error
        return self

    def slice_of(self, value: Any, limit: TimeLimit | None = None) -> str:
        """The slice of a row with this value. limit: on the time that its pattern may take.

        Raises TypeError on a value that is neither text, number nor bool, TookTooLong.
        """
        if value is None or value != value:
            return NO_VALUE
        if not isinstance(value, str | int | float):
            raise TypeError(type(value).__name__)
        if self.edges:
            size = len(value) if isinstance(value, str) else value
            return self.ranges[int(np.searchsorted(self.edges, size, side="right"))]
        shown = plain(value)
        if shown is None:
            return NO_VALUE
        if self.listed:
            return "listed" if shown in self.listed else "others"
        if self.pattern is None:
            return shown
        search = partial(compiled(self.pattern).search, shown)
        found = limit(search) if limit is not None else search()
        return (found[1 if found.re.groups else 0] if found else None) or NO_VALUE

    @property
    def ranges(self) -> list[str]:
        """Names of the ranges, rising."""
        shown = [json.dumps(int(edge) if edge.is_integer() else edge) for edge in self.edges]
        inner = [f"{low}..{high}" for low, high in pairwise(shown)]
        return [f"<{shown[0]}", *inner, f">={shown[-1]}"] if shown else []


def read_masks(data: InputArtifact, split: str, slicings: Mapping[str, Slicing]) -> Masks:
    """Which examples of the split each slice holds; slices without any are left out.

    Raises StageError on packed tokens, which have no columns, on a column that is missing or holds no text or number,
    and on one with too many values.
    """
    from tasks.data.dataset.split import read_split

    if not slicings:
        return {}
    if data.manifest.type != "dataset":
        raise StageError(
            "packed tokens have no columns to slice by", where="slices", hint="Evaluate on the dataset, not its tokens."
        )
    table = read_split(data, split, columns=sorted({slicing.by for slicing in slicings.values()}))
    return {name: _masks(name, slicing, table[slicing.by]) for name, slicing in slicings.items()}


def _masks(name: str, slicing: Slicing, column: Sequence[Any]) -> dict[str, npt.NDArray[np.bool_]]:
    limit = time_limit(slicing.pattern, f"slices.{name}") if slicing.pattern is not None else None
    try:
        slices = [slicing.slice_of(value, limit) for value in column]
    except TookTooLong as error:
        raise StageError(
            f"column {slicing.by!r} has a text of which its pattern makes no slice: {error}",
            where=f"slices.{name}.pattern",
            hint="Write it in another way: a repetition within a repetition may have no end.",
        ) from error
    except (TypeError, ValueError) as error:
        raise StageError(
            f"column {slicing.by!r} holds {error}, neither text nor numbers",
            where=f"slices.{name}.by",
            hint="Name another column.",
        ) from error
    if gone := sorted(set(slicing.listed) - {plain(value) for value in column} if slicing.listed else ()):
        raise StageError(
            f"{len(gone)} of the {len(slicing.listed)} listed values of {slicing.by!r} are not in the split: "
            f"{', '.join(gone[:3])}",
            where=f"slices.{name}.listed",
            hint="What has to stay right cannot be judged where it is missing. Correct the list, or the data.",
        )
    found = set(slices)
    if len(found) > MOST:
        raise StageError(
            f"column {slicing.by!r} makes {len(found)} slices, and {MOST} is the most",
            where=f"slices.{name}",
            hint="Divide it by `edges`, or take a part of it with `pattern`.",
        )
    order = [*slicing.ranges, NO_VALUE] if slicing.edges else sorted(found)
    return {one: np.array([other == one for other in slices]) for one in order if one in found}


def slice_name(slicing: str, value: str) -> str:
    """What follows a metric's name."""
    return f"[{slicing}={value}]"


def within(
    metrics: Callable[[Array], Mapping[str, Array]], mask: npt.NDArray[np.bool_], weights: Array
) -> dict[str, Array]:
    """Metric -> [R] of the examples in `mask` [N] alone, under weights [R, N]; nan where a resample drew none."""
    inside = weights * mask
    empty = inside.sum(1) == 0
    inside[empty] = mask  # any weights would do: metrics of nothing are not asked for
    return {name: np.where(empty, np.nan, values) for name, values in metrics(inside).items()}
