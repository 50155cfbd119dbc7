"""The chosen rows of one prepared shard, a file for each split that has any: Parquet, or Arrow for some columns."""

from __future__ import annotations

import base64
import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from infra.store import Store
from tasks.data.dataset.column_figures import ColumnFigures
from tasks.data.dataset.layout import BATCH, COLUMNS
from tasks.data.dataset.row_files import ARROW, PARQUET, writer
from tasks.data.parts.parts import artifact_file

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

VERSION = 1


def take_rows(arguments: dict[str, Any], folder: Path, store: Store) -> dict[str, float]:
    """Write `<split>.parquet` (or `.arrow`) for each split in `take` that has rows, a batch at a time.

    arguments: `rows`, location of the prepared shard's rows; `take`, row numbers by split (`packed`), ascending;
    `labelled`; `mapped`, the types of the columns that are memory-mapped. A row taken again gets `@2`, `@3` ... behind
    its id. Returns the rows of each split, and the figures of the columns that pass through.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.ParquetFile(artifact_file(arguments["rows"], store), pre_buffer=False)
    schema = pa.schema([field for field in table.schema_arrow if arguments["labelled"] or field.name != "label"])
    passing, figures = [name for name in schema.names if name not in COLUMNS], ColumnFigures()
    kinds = arguments.get("mapped", {})
    suffix = ARROW if kinds else PARQUET
    take = {split: rows for split, text in arguments["take"].items() if len(rows := unpacked(text))}
    with contextlib.ExitStack() as stack:
        writers = {split: stack.enter_context(writer(folder / f"{split}{suffix}", schema)) for split in take}
        begin = 0
        for batch in _batches(table, schema.names, by_group=bool(passing)):
            for split, rows in take.items():
                first, last = np.searchsorted(rows, [begin, begin + len(batch)])
                if first == last:
                    continue
                taken = batch.take(pa.array(rows[first:last] - begin))
                if (np.diff(rows[first:last].astype(np.int64)) == 0).any():
                    ids = pa.array(_told_apart(taken.column("id").to_pylist()))
                    taken = pa.record_batch([ids, *taken.columns[1:]], schema=schema)
                writers[split].write_batch(taken)
                for name in passing:
                    figures.add(name, taken.column(name), kinds.get(name, ""))
            begin += len(batch)
    return {**{split: float(len(rows)) for split, rows in take.items()}, **figures.to_metrics()}


def _batches(table: pq.ParquetFile, names: list[str], *, by_group: bool) -> Iterator[pa.RecordBatch]:
    """The rows in batches; by the groups they were written in where a column's values may be large."""
    groups = [[i] for i in range(table.num_row_groups)] if by_group else [None]
    for group in groups:
        yield from table.iter_batches(BATCH, row_groups=group, columns=names)


def packed(take: Mapping[str, npt.NDArray[np.int64]]) -> dict[str, str]:
    """Row numbers as text, for the arguments of a part."""
    return {split: base64.b64encode(rows.astype("<u4").tobytes()).decode() for split, rows in take.items()}


def unpacked(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(base64.b64decode(text), "<u4")


def _told_apart(ids: list[str]) -> list[str]:
    seen: Counter[str] = Counter()
    found = []
    for name in ids:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}@{seen[name]}")
    return found
