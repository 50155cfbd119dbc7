"""What one dataset has and another has not. Two rows are equal where text and columns are.

A duplicate that took the place of the example it repeats is nothing new. Files that both have are not read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.data.dataset.layout import COLUMNS, describe, iterate_columns, stored_files
from tasks.data.drift.columns import measured, measured_sizes
from tasks.data.hashing import content_digest
from tasks.data.reading.typed_columns import MEDIA

if TYPE_CHECKING:
    from infra.artifacts import Manifest
    from infra.store import Store

Row = dict[str, Any]
"""`id`, `text` and `label`, as far as there are such; `content`: the same of equal rows; `columns`: what the tests of
`tasks/data/drift/columns.py` see of the others."""


def new_rows(store: Store, data: Manifest, other: Manifest | None) -> list[Row]:
    """Rows of `data` that `other` has not; None: all of them. Columns that only one of the two has do not count."""
    mine = {entry.path: entry.sha256 for _, entry in stored_files(data)}
    theirs = {entry.path: entry.sha256 for _, entry in stored_files(other)} if other else {}
    known, both = set(), passing(store, data)
    if other is not None:
        both &= passing(store, other)
        changed = [path for path, sha in theirs.items() if mine.get(path) != sha]
        known = {row["content"] for row in rows(store, other, changed, both)}
    changed = [path for path, sha in mine.items() if theirs.get(path) != sha]
    return [row for row in rows(store, data, changed, both) if row["content"] not in known]


def passing(store: Store, data: Manifest) -> set[str]:
    """The columns that pass through a stored dataset, beside those that each has."""
    return {*describe(store.fetch(data, only=["dataset.json"]))["columns"]} - {*COLUMNS}


def rows(store: Store, data: Manifest, files: list[str], content: Collection[str] | None = None) -> Iterator[Row]:
    """Rows of some files of a stored dataset. content: columns that count beside the text; None: all that pass."""
    if not files:
        return
    folder = store.fetch(data, only=[*files, "dataset.json"])
    for row, others in measured_rows(folder, (folder / path for path in sorted(files))):
        yield row | {"content": _content(row, others, sorted(others if content is None else content))}


def measured_rows(folder: Path, files: Iterable[Path]) -> Iterator[tuple[Row, Row]]:
    """(the row without `content`, the values of its passing columns) of some files of the dataset in `folder`."""
    described = describe(folder)
    there, types = described["columns"], described.get("types", {})
    kept = [name for name in ("id", "text", "label") if name in there]
    passed = sorted({*there} - {*COLUMNS})
    for batch in iterate_columns(files, [*kept, *passed]):
        for place in range(len(batch["id"])):
            others = {name: batch[name][place] for name in passed}
            row = {name: batch[name][place] for name in kept}
            seen: Row = {}
            for name, value in others.items():
                seen |= (
                    measured_sizes(name, value, types[name]) if types.get(name) in MEDIA else {name: measured(value)}
                )
            yield row | {"columns": seen}, others


def _content(row: Row, others: Row, columns: list[str]) -> Any:
    """A digest; of a row that has nothing but its id, the id."""
    text, values = row.get("text") or "", [others[name] for name in columns]
    if not text and all(value is None for value in values):
        return row["id"]
    return content_digest(text, values)
