"""Labels of a dataset: where they come from, what they are called, which are kept and how many of each."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, create_model, field_validator

from infra.errors import StageError
from tasks.data.hashing import Hashes
from tasks.data.plain_values import alike, plain_text
from tasks.stage import StageParams

_FROM = Field(
    pattern=r"^(package|folder|column:.+)$",
    description="`package`: first folder of the file's path. `folder`: the last one. `column:NAME`: a column of the "
    "rows.",
)
# `from` is a keyword of Python; an alias would show another name in messages, schema and plans.
_From: Any = create_model("_From", __base__=StageParams, **{"from": (str, _FROM)})  # type: ignore[call-overload]


class Label(_From):
    """Where the label of an example comes from."""

    map: dict[str, str] | None = Field(
        None,
        min_length=1,
        description="Label in the data -> label of the dataset; rows with another one are set aside.",
    )
    keep: list[str] | None = Field(None, min_length=1, description="Labels kept; other rows go. None: all.")
    max_per_class: int | None = Field(
        None, ge=1, description="Most training examples of one class, chosen by a hash of their ids. None: all."
    )
    balance: bool = Field(False, description="As many training examples of each class as the rarest has.")

    @field_validator("map")
    @classmethod
    def _spelled_as_read(cls, known: dict[str, str] | None) -> dict[str, str] | None:
        """Labels as the rows have them (`tasks/data/plain_values.py`), on both sides."""
        if known is None:
            return None
        found: dict[str, str] = {}
        for given, name in ((_label(given), _label(name)) for given, name in known.items()):
            if found.setdefault(given, name) != name:
                raise ValueError(f"{given!r} is there in two spellings, as {found[given]!r} and as {name!r}")
        return found

    @field_validator("keep")
    @classmethod
    def _kept_as_read(cls, keep: list[str] | None) -> list[str] | None:
        return None if keep is None else list(dict.fromkeys(map(_label, keep)))

    @property
    def source(self) -> str:
        """`package`, `folder` or `column:NAME`."""
        return str(getattr(self, "from"))

    @property
    def column(self) -> str | None:
        return self.source.partition(":")[2] or None


def _label(given: str) -> str:
    name = plain_text(given)
    if name is None:
        raise ValueError("an empty label: rows without one are left out anyway")
    return name


def spelling_warnings(labels: Iterable[str]) -> list[str]:
    """A sentence for each group of labels that differ in spelling alone."""
    return [
        f"labels {', '.join(map(repr, names))} differ in spelling alone and count as {len(names)} classes; if they are "
        "one, make them one with `label.map`"
        for names in alike(labels)
    ]


def mapped(label: str, known: Mapping[str, str]) -> tuple[str | None, str]:
    """(the dataset's label or None, what is wrong)."""
    if label in known:
        return known[label], ""
    close = difflib.get_close_matches(label, known, n=1)
    return None, f"label {label!r} is not in the map{f'; did you mean {close[0]!r}?' if close else ''}"


def check_known(keep: Iterable[str], existing: Iterable[str]) -> None:
    """Raises StageError on a label that no example has, naming those there are."""
    known = sorted(set(existing))
    for name in keep:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            guess = f"Did you mean {close[0]}? " if close else ""
            shown = ", ".join(known[:40]) + (f" and {len(known) - 40} more" if len(known) > 40 else "")
            raise StageError(f"no example has the label {name!r}", where="label.keep", hint=f"{guess}Labels: {shown}.")


def check_classes(labels: Iterable[str]) -> None:
    """Raises StageError unless there are at least two classes."""
    found = sorted(set(labels))
    if len(found) < 2:
        only = f"only {found[0]!r}" if found else "none"
        raise StageError(
            f"a labelled dataset needs at least two classes, there is {only}",
            where="label",
            hint="Widen `keep`, point `from` at another column, or leave `label` out.",
        )


def capped(labels: npt.NDArray[np.int32], order: Hashes, label: Label) -> npt.NDArray[np.bool_]:
    """Which training rows stay: of each class those with the lowest hash, as many as are allowed."""
    keep = np.ones(len(labels), np.bool_)
    counts = np.bincount(labels) if len(labels) else np.zeros(0, np.int64)
    limit = label.max_per_class
    if label.balance and len(labels):
        rarest = int(counts[counts > 0].min())
        limit = rarest if limit is None else min(limit, rarest)
    if limit is None:
        return keep
    for code in np.flatnonzero(counts > limit):
        members = np.flatnonzero(labels == code)
        keep[members[np.argsort(order[members], kind="stable")[limit:]]] = False
    return keep
