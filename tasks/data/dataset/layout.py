"""A dataset artifact on disk: a folder of files of rows per split, and `dataset.json` that says what is in it.

    train/<shard>.parquet  validation/<shard>.parquet  test/<shard>.parquet

Where a column holds images, audio or lists, the files are Arrow IPC instead, `<shard>.arrow` (`row_files.py`).

Columns: `id` (path, path::qualname or path#row), `text`, `group` (what is never torn over two splits), and `label`
where the dataset is labelled, all strings; then those that pass through, by name, of their own types. A shard's file is
named by the shard and written without timestamps: equal rows give equal bytes, whatever else is in the dataset.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import StageError
from tasks.data.dataset.row_files import SUFFIXES, batches_of

if TYPE_CHECKING:
    import pyarrow as pa

    from infra.artifacts import FileEntry, Manifest
    from tasks.data.reading.rows import Row
    from tasks.data.reading.typed_columns import ColumnType

COLUMNS = ("id", "text", "group", "label")
BATCH = 1024


def row_schema(columns: Mapping[str, ColumnType] | None = None) -> pa.Schema:
    """Schema of prepared rows; `columns`: those that pass through."""
    import pyarrow as pa

    from tasks.data.reading.typed_columns import arrow_type

    typed = [(name, arrow_type(kind)) for name, kind in sorted((columns or {}).items())]
    return pa.schema([*((name, pa.string()) for name in COLUMNS), *typed])


def row_batch(rows: Sequence[Row], schema: pa.Schema) -> pa.RecordBatch:
    """Rows as a record batch of `row_schema`."""
    import pyarrow as pa

    columns = [[getattr(row, name) for row in rows] for name in COLUMNS]
    columns += [[row.values[i] for row in rows] for i in range(len(schema) - len(COLUMNS))]
    return pa.record_batch([pa.array(*pair) for pair in zip(columns, schema.types, strict=True)], schema=schema)


def describe(folder: Path) -> dict[str, Any]:
    """`dataset.json` of a dataset artifact: `splits` (rows of each), `labels` (sorted, or None), `columns`."""
    found: dict[str, Any] = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    return found


def has_split(folder: Path, type: str, split: str) -> bool:
    """Whether an artifact of type `dataset` or `tokens` has examples in a split."""
    name = {"tokens": "tokens.json", "dataset": "dataset.json"}[type]
    return bool(json.loads((folder / name).read_text(encoding="utf-8"))["splits"].get(split))


def split_files(folder: Path, split: str) -> list[Path]:
    """The files of a split, in their lasting order. Raises StageError on a split that does not exist."""
    known = describe(folder)["splits"]
    if split not in known:
        raise StageError(f"no split {split!r}", hint=f"It has: {', '.join(known)}.")
    return sorted(file for file in (folder / split).glob("*") if file.suffix in SUFFIXES)


def stored_files(manifest: Manifest, splits: Collection[str] | None = None) -> list[tuple[str, FileEntry]]:
    """(split, entry) of each file of rows of a stored dataset; of the splits given, or of all."""
    found = [(entry.path.partition("/")[0], entry) for entry in manifest.payload if "/" in entry.path]
    return [(split, entry) for split, entry in found if splits is None or split in splits]


def iterate_columns(
    files: Iterable[Path], columns: Sequence[str], batch_size: int = BATCH
) -> Iterator[dict[str, list[Any]]]:
    """Columns of rows in stored order, a batch at a time, in constant memory."""
    for file in files:
        for batch in batches_of(file, columns, batch_size):
            yield {name: batch.column(name).to_pylist() for name in columns}


def iterate_texts(folder: Path, split: str) -> Iterator[list[str]]:
    """Texts of a split in stored order, a batch at a time. Raises StageError on a split that does not exist."""
    for found in iterate_columns(split_files(folder, split), ["text"]):
        yield found["text"]
