"""Names of the metrics of single classes: `f1@#2` where an objective computes it, `f1@sports` where people read it.

An objective knows classes by number; whoever has the labels at hand puts them in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from infra.errors import StageError

T = TypeVar("T")
NUMBER = "@#"


def of_class(name: str, values: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    """`<name>@#<c>` -> [R] for each class of values [R, C]."""
    return {f"{name}{NUMBER}{c}": np.ascontiguousarray(values[:, c]) for c in range(values.shape[1])}


def with_class_names(values: Mapping[str, T], labels: Sequence[str] | None) -> dict[str, T]:
    """The same with labels for numbers; where there are none, numbers stay."""
    found = {}
    for name, value in values.items():
        metric, mark, number = name.partition(NUMBER)
        named = mark and labels is not None and number.isdigit() and int(number) < len(labels)
        found[f"{metric}@{labels[int(number)]}" if named and labels is not None else name] = value
    return found


def config_labels(config: Any) -> list[str] | None:
    """Class names that a model's config carries, by number."""
    names = getattr(config, "id2label", None)
    return [str(names[i]) for i in sorted(names)] if names else None


def same_labels(model: str, known: Sequence[str] | None, truth: Iterable[str] | None, *, where: str) -> None:
    """Raises StageError where a model knows other classes than `truth` has, the data or another model, in any order."""
    if known and truth is not None and sorted(known) != sorted(truth):
        raise StageError(
            f"{model} knows the labels {list(known)}, and here they are {list(truth)}",
            where=where,
            hint="The same labels are needed: use the dataset, or the model, they were learned from.",
        )


def columns(known: Sequence[str] | None, labels: Sequence[str] | None) -> list[int] | None:
    """Where each of the `labels` stands among a model's outputs, which are numbered as `known`; None: as they are."""
    if known is None or labels is None or list(known) == list(labels):
        return None
    return [list(known).index(label) for label in labels]
