"""What is known of all shards' rows, as if they were one table: whole columns, or the values of some rows.

A row is named by its place among all: shards in their order, and in each the rows in theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.data.selection.sketch import Array, Sketch, gathered

OPEN_FILES = 256
Rows = npt.NDArray[np.signedinteger[Any]]


@dataclass(frozen=True)
class PreparedShard:
    """What is known of a shard: its sketch, what fetches its signatures, its counts, and its source's `weight`."""

    sketch: Path
    signatures: Callable[[], Path]
    counts: dict[str, Any]
    weight: float = 1.0


class KnownRows:
    """The rows of some shards. `begins` and `ends` [shards]: the place of each shard's first row, and behind its last.

    Files are open as long as they are among the last that were read.
    """

    def __init__(self, shards: Sequence[PreparedShard]) -> None:
        self._shards, self._open = shards, lru_cache(OPEN_FILES)(Sketch)
        sizes = np.array([shard.counts["rows"] for shard in shards], np.int64)
        self.ends = np.cumsum(sizes)
        self.begins = self.ends - sizes

    def column(self, name: str, place: int | None = None) -> Array:
        """All rows' values [rows], or [rows, width] of a wide column without a `place` in it."""
        found, begin = np.zeros(0), 0
        for shard in self._shards:
            # What it is put together from is not held beside it.
            for values in self._open(shard.sketch).column(name, place):
                if not begin:
                    found = np.empty((self.ends[-1], *values.shape[1:]), values.dtype)
                found[begin : begin + len(values)] = values
                begin += len(values)
        return found

    def values(self, name: str, rows: Rows) -> Array:
        """The values of some rows, at least one; the files of a shard that has none of them are not read."""

        def of_shard(number: int, mine: Rows) -> Array:
            shard = self._shards[number]
            sketch = self._open(shard.signatures() if name == "signature" else shard.sketch)
            return sketch.values(name, rows[mine] - self.begins[number])

        return gathered(self.shards_of(rows), of_shard)

    def shards_of(self, rows: Rows) -> Rows:
        """The number of the shard that each row belongs to."""
        found: Rows = np.searchsorted(self.ends, rows, "right")
        return found
