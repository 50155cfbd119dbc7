"""Labels of a dataset: where they come from, which are kept."""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

from pydantic import Field, create_model

from infra.errors import StageError
from tasks.data.reading import Row
from tasks.stage import StageParams

_FROM = Field(
    pattern=r"^(package|column:.+)$",
    description="`package`: first folder of the file's path. `column:NAME`: a column of the rows.",
)
# `from` is a keyword of Python; an alias would show another name in messages, schema and plans.
_From: Any = create_model("_From", __base__=StageParams, **{"from": (str, _FROM)})  # type: ignore[call-overload]


class Label(_From):
    """What the class of an example is."""

    keep: list[str] | None = Field(None, min_length=1, description="Labels kept; other rows go. None: all.")
    max_per_class: int | None = Field(
        None, ge=1, description="Most training examples of one class, chosen by a hash of their ids. None: all."
    )

    @property
    def source(self) -> str:
        """`package` or `column:NAME`."""
        return str(getattr(self, "from"))

    @property
    def column(self) -> str | None:
        return self.source.partition(":")[2] or None


def check_known(keep: Iterable[str], existing: Iterable[str]) -> None:
    """Raises StageError on a label that no example has, naming those there are."""
    known = sorted(set(existing))
    for name in keep:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            guess = f"Did you mean {close[0]}? " if close else ""
            shown = ", ".join(known[:40]) + (f" and {len(known) - 40} more" if len(known) > 40 else "")
            raise StageError(f"no example has the label {name!r}", where="label.keep", hint=f"{guess}Labels: {shown}.")


def choose(rows: list[Row], label: Label) -> tuple[list[Row], Counter[str]]:
    """Rows with a kept label and why the others went. Raises StageError unless at least two classes are left."""
    dropped: Counter[str] = Counter()
    counts = Counter(row.label for row in rows if row.label is not None)
    if label.keep is not None:
        check_known(label.keep, counts)
    wanted = set(label.keep if label.keep is not None else counts)
    kept = []
    for row in rows:
        if row.label is None:
            dropped[f"no {label.source}"] += 1
        elif row.label not in wanted:
            dropped["label not kept"] += 1
        else:
            kept.append(row)
    if len(wanted) < 2:
        only = f"only {next(iter(wanted))!r}" if wanted else "none"
        raise StageError(
            f"a labelled dataset needs at least two classes, there is {only}",
            where="label",
            hint="Widen `keep`, point `from` at another column, or leave `label` out.",
        )
    return kept, dropped


def cap(rows: list[Row], limit: int) -> list[Row]:
    """At most `limit` rows of each class: those with the lowest hash of their id, in the given order."""
    by_class: dict[str | None, list[Row]] = {}
    for row in rows:
        by_class.setdefault(row.label, []).append(row)
    chosen = {
        row.id
        for members in by_class.values()
        for row in sorted(members, key=lambda r: hashlib.sha256(r.id.encode()).digest())[:limit]
    }
    return [row for row in rows if row.id in chosen]
