"""The chosen rows of one prepared shard, a Parquet file for each split that has any."""

from __future__ import annotations

import base64
import contextlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.store import Store
from tasks.data.columns import BATCH, row_schema
from tasks.data.parts import artifact_file

VERSION = 1


def take_rows(arguments: dict[str, Any], folder: Path, store: Store) -> dict[str, float]:
    """Write `<split>.parquet` for each split in `take` that has rows, a batch at a time.

    arguments: `rows`, location of the prepared shard's rows; `take`, row numbers by split (`packed`), ascending;
    `labelled`. A row taken again gets `@2`, `@3` ... behind its id.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = row_schema(arguments["labelled"])
    take = {split: rows for split, text in arguments["take"].items() if len(rows := unpacked(text))}
    with contextlib.ExitStack() as stack:
        writers = {
            split: stack.enter_context(
                pq.ParquetWriter(folder / f"{split}.parquet", schema, compression="zstd", compression_level=1)
            )
            for split in take
        }
        begin, table = 0, pq.ParquetFile(artifact_file(arguments["rows"], store), pre_buffer=False)
        for batch in table.iter_batches(BATCH, columns=schema.names):
            for split, rows in take.items():
                first, last = np.searchsorted(rows, [begin, begin + len(batch)])
                if first == last:
                    continue
                taken = batch.take(pa.array(rows[first:last] - begin))
                if (np.diff(rows[first:last].astype(np.int64)) == 0).any():
                    ids = pa.array(_told_apart(taken.column("id").to_pylist()))
                    taken = pa.record_batch([ids, *taken.columns[1:]], schema=schema)
                writers[split].write_batch(taken)
            begin += len(batch)
    return {split: float(len(rows)) for split, rows in take.items()}


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
