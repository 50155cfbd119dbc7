"""Columns that a source's settings name, and those its rows have.

A row of a jsonl file may lack a column that others have: its value is missing. A column that no row has is a name that
does not exist, and doing without it would be guessing.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from infra.errors import StageError

if TYPE_CHECKING:
    from tasks.data.reading.records import Numbered
    from tasks.data.reading.sources import Source

SHOWN = 40


class ColumnNames:
    """Which of the columns asked for no record has had so far, and the columns there are."""

    def __init__(self) -> None:
        self.records = 0
        self.unmet: set[str] = set()
        self._there: dict[str, None] = {}

    def of_file(self, asked: Collection[str], records: Iterable[Numbered]) -> Iterator[Numbered]:
        """The records of a file, (line, record), looked at as they pass."""
        before, self.unmet = self.unmet if self.records else set(asked), set(asked)
        for numbered in records:
            record = numbered[1]
            if isinstance(record, dict):
                self.records += 1
                if self.unmet:
                    self.unmet.difference_update(record)
                    if len(self._there) < SHOWN:
                        self._there.update(dict.fromkeys(record))
            yield numbered
        self.unmet &= before

    def to_json(self) -> dict[str, Any]:
        return {"records": self.records, "unmet": sorted(self.unmet), "there": list(self._there)[:SHOWN]}


def check_columns(source: Source, number: int, shards: Iterable[Mapping[str, Any]], fields: Mapping[str, str]) -> None:
    """Raises StageError on a column that no row of the source has.

    shards: `ColumnNames.to_json` of each. fields: column -> the field that names it, `split.by`.
    """
    read = [shard for shard in shards if shard["records"]]
    if not read:
        return
    unmet = set.intersection(*(set(shard["unmet"]) for shard in read))
    there = sorted({name for shard in read for name in shard["there"]})
    for column in sorted(unmet):
        close = difflib.get_close_matches(column, there, n=1)
        raise StageError(
            f"no row of sources[{number}] ({getattr(source, source.field)}) has a column {column!r}",
            where=fields.get(column, f"sources[{number}]"),
            hint=f"{f'Did you mean {close[0]!r}? ' if close else ''}Its columns: {', '.join(map(repr, there))}.",
        )
