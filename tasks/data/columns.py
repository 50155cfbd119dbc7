"""A dataset artifact on disk: one Parquet file per split, and `dataset.json` that says what is in it.

Columns, all strings: `id` (path, path::qualname or path#row), `text`, `group` (what is never torn over two splits),
and `label` where the dataset is labelled. Parquet is written without timestamps: equal rows give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.errors import StageError
from tasks.data.reading import Row

ROW_GROUP = 4096


def write_dataset(folder: Path, splits: Mapping[str, Sequence[Row]], labels: Sequence[str] | None) -> None:
    """Write the payload of a dataset artifact."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ["id", "text", "group", *(["label"] if labels is not None else [])]
    schema = pa.schema([(name, pa.string()) for name in names])
    for split, rows in splits.items():
        table = pa.table({name: [getattr(row, name) for row in rows] for name in names}, schema=schema)
        pq.write_table(table, folder / f"{split}.parquet", compression="zstd", row_group_size=ROW_GROUP)
    description = {
        "splits": {split: len(rows) for split, rows in splits.items()},
        "labels": list(labels) if labels is not None else None,
        "columns": names,
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def describe(folder: Path) -> dict[str, Any]:
    """`dataset.json` of a dataset artifact: `splits` (rows of each), `labels` (sorted, or None), `columns`."""
    found: dict[str, Any] = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    return found


def iterate_texts(folder: Path, split: str) -> Iterator[list[str]]:
    """Texts of a split in stored order, a row group at a time. Raises StageError on a split that does not exist."""
    import pyarrow.parquet as pq

    file = folder / f"{split}.parquet"
    if not file.is_file():
        known = ", ".join(describe(folder)["splits"])
        raise StageError(f"the dataset has no split {split!r}", hint=f"Its splits: {known}.")
    for batch in pq.ParquetFile(file).iter_batches(batch_size=ROW_GROUP, columns=["text"]):
        yield batch.column("text").to_pylist()
