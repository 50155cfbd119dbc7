"""What is known of a shard's rows, column by column: an Arrow file, written as the rows come and read memory-mapped.

A column has one value a row, or a fixed number of them: numpy arrays [rows] or [rows, width] in and out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

Array = npt.NDArray[Any]
Places = npt.NDArray[np.int64]


class SketchWriter:
    """Writes batches of rows, all with the columns of the first."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._writer: pa.RecordBatchFileWriter | None = None

    def write(self, columns: Mapping[str, Array]) -> None:
        import pyarrow as pa

        arrays = [_to_arrow(values) for values in columns.values()]
        batch = pa.record_batch(arrays, names=list(columns))
        if self._writer is None:
            self._writer = pa.ipc.new_file(self._file, batch.schema)
        self._writer.write_batch(batch)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Sketch:
    """A shard's sketch; its file is open as long as this lives."""

    def __init__(self, file: Path) -> None:
        import pyarrow as pa

        reader = pa.ipc.open_file(pa.memory_map(str(file)))
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._ends = np.cumsum([batch.num_rows for batch in self._batches])
        self._columns: dict[str, list[Array]] = {}

    def column(self, name: str, place: int | None = None) -> Iterator[Array]:
        """All values of a column, or those at one place of a wide one, batch after batch, not copied."""
        for values in self._of_batches(name):
            yield values if place is None else values[:, place]

    def values(self, name: str, rows: Places) -> Array:
        """The values of some rows; of the others nothing is read."""

        def of_batch(number: int, places: Places) -> Array:
            values = self._of_batches(name)[number]
            found: Array = values[rows[places] - (self._ends[number] - len(values))]
            return found

        return gathered(np.searchsorted(self._ends, rows, "right"), of_batch)

    def _of_batches(self, name: str) -> list[Array]:
        """A column as arrays over the mapped file, one a batch; made once, because bands are asked for one by one."""
        if name not in self._columns:
            self._columns[name] = [_to_numpy(batch.column(name)) for batch in self._batches]
        return self._columns[name]


def gathered(groups: npt.NDArray[Any], take: Callable[[int, Places], Array]) -> Array:
    """What `take` gives for the places of each group, put together in the order of the places. At least one place."""
    order = [(int(group), np.flatnonzero(groups == group)) for group in np.unique(groups)]
    found = np.concatenate([take(group, places) for group, places in order])
    together: Array = found[np.argsort(np.concatenate([places for _, places in order]))]
    return together


def _to_arrow(values: Array) -> Any:
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _to_numpy(column: Any) -> Array:
    import pyarrow as pa

    if not pa.types.is_fixed_size_list(column.type):
        plain: Array = column.to_numpy()
        return plain
    wide: Array = column.values.to_numpy().reshape(len(column), column.type.list_size)
    return wide
