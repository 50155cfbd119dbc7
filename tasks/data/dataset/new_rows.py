"""What one dataset has and another has not: examples by their text, or by their id where there is no text.

A duplicate that took the place of the example it repeats is nothing new. Files that both have are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tasks.data.dataset.layout import describe, iterate_columns, stored_files

if TYPE_CHECKING:
    from infra.artifacts import Manifest
    from infra.store import Store

Row = dict[str, Any]


def new_rows(store: Store, data: Manifest, other: Manifest | None) -> list[Row]:
    """Rows (`id`, `text`, `label`, as far as there are such) of `data` that `other` has not; None: all of them."""
    mine = {entry.path: entry.sha256 for _, entry in stored_files(data)}
    theirs = {entry.path: entry.sha256 for _, entry in stored_files(other)} if other else {}
    known = set()
    if other is not None:
        changed = [path for path, sha in theirs.items() if mine.get(path) != sha]
        known = {_content(row) for row in rows(store, other, changed)}
    changed = [path for path, sha in mine.items() if theirs.get(path) != sha]
    return [row for row in rows(store, data, changed) if _content(row) not in known]


def rows(store: Store, data: Manifest, files: list[str]) -> Iterator[Row]:
    """Rows of some files of a stored dataset."""
    if not files:
        return
    folder = store.fetch(data, only=[*files, "dataset.json"])
    kept = [name for name in ("id", "text", "label") if name in describe(folder)["columns"]]
    for batch in iterate_columns((folder / path for path in sorted(files)), kept):
        for values in zip(*(batch[name] for name in kept), strict=True):
            yield dict(zip(kept, values, strict=True))


def _content(row: Row) -> Any:
    return row["id"] if row.get("text") is None else row["text"]
