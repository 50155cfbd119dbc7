"""What a dataset has that an older one had not: rows by their ids. Files that both have are not read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tasks.data.columns import describe, iterate_columns, stored_files

if TYPE_CHECKING:
    from infra.artifacts import Manifest
    from infra.store import Store

Row = dict[str, Any]


def new_rows(store: Store, new: Manifest, old: Manifest | None) -> list[Row]:
    """Rows (`id`, `text`, `label` where there is one) of `new` whose id is not in `old`; None: all of them."""
    files = {entry.path: entry.sha256 for _, entry in stored_files(new)}
    before = {entry.path: entry.sha256 for _, entry in stored_files(old)} if old else {}
    known = set()
    if old is not None:
        gone = sorted(path for path, sha in before.items() if files.get(path) != sha)
        known = {row["id"] for row in rows(store, old, gone, columns=("id",))}
    changed = sorted(path for path, sha in files.items() if before.get(path) != sha)
    return [row for row in rows(store, new, changed) if row["id"] not in known]


def rows(
    store: Store, data: Manifest, files: list[str], columns: tuple[str, ...] = ("id", "text", "label")
) -> Iterator[Row]:
    """Rows of some files of a stored dataset."""
    if not files:
        return
    folder = store.fetch(data, only=[*files, "dataset.json"])
    kept = [name for name in columns if name in describe(folder)["columns"]]
    for batch in iterate_columns((folder / path for path in files), kept):
        for values in zip(*(batch[name] for name in kept), strict=True):
            yield dict(zip(kept, values, strict=True))
