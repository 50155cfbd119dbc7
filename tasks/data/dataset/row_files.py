"""One file of a dataset's rows: Parquet, or Arrow IPC where a column holds images, audio or lists.

Arrow files are uncompressed and memory-mapped: opening one reads nothing, and a value is a slice of the file. Which of
the two a file is, its suffix says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET, ARROW = ".parquet", ".arrow"
SUFFIXES = (PARQUET, ARROW)


def schema_of(file: Path) -> pa.Schema:
    """Names and types of the file's columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.suffix == ARROW:
        with pa.memory_map(str(file)) as source:
            return pa.ipc.open_file(source).schema
    return pq.read_schema(file)


def table_of(file: Path, columns: Sequence[str]) -> pa.Table:
    """Some columns of the file: memory-mapped where it is Arrow, in memory where it is Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.suffix == ARROW:
        return pa.ipc.open_file(pa.memory_map(str(file))).read_all().select(list(columns))
    return pq.read_table(file, columns=list(columns))


def batches_of(file: Path, columns: Sequence[str], batch_size: int) -> Iterator[pa.RecordBatch]:
    """Some columns of the file in stored order, at most `batch_size` rows at a time, in constant memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.suffix == PARQUET:
        # Buffering would hold the whole file.
        yield from pq.ParquetFile(file, pre_buffer=False).iter_batches(batch_size=batch_size, columns=list(columns))
        return
    with pa.memory_map(str(file)) as source:
        opened = pa.ipc.open_file(source)
        for number in range(opened.num_record_batches):
            batch = opened.get_batch(number).select(list(columns))
            for begin in range(0, len(batch), batch_size):
                yield batch.slice(begin, batch_size)


def writer(file: Path, schema: pa.Schema) -> Any:
    """A writer (`write_batch`, `close`, a context manager) of a file of either kind, without timestamps."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.suffix == ARROW:
        return pa.ipc.new_file(str(file), schema)
    return pq.ParquetWriter(file, schema, compression="zstd", compression_level=1)
