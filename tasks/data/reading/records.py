"""Records of tables and lines: csv, jsonl, lines, Parquet, Arrow, a batch at a time."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from infra.errors import StageError
from tasks.data.reading.csv_records import CsvRows
from tasks.data.reading.datasets_door import FeatureColumns
from tasks.data.reading.sources import DATASETS, Source
from tasks.data.reading.streams import decode, lines, open_text, reason, too_long

BATCH = 1024
BATCH_BYTES = 32 << 20
"""Of a table, which may have an image in each row."""
Numbered = tuple[int | None, dict[str, Any] | str]
"""(line, record) or (line, what is wrong with it)."""


def records(
    file: Path, path: str, source: Source, wanted: Collection[str], warn: Callable[[str], None]
) -> Iterator[Numbered]:
    """Every record of a file with its line, or what is wrong with it; `wanted`: the columns that must be there.

    warn: takes what the user should look at.

    Raises StageError if the file is no table or lacks a column.
    """
    if source.format in ("parquet", "arrow", DATASETS):
        yield from _table(file, path, source, wanted)
        return
    with open_text(file, source.fallback_encoding) as stream:
        if source.format == "csv":
            yield from _csv(stream, path, source, wanted, warn)
        elif source.format == "lines":
            for number, line in lines(stream):
                if line is None or line.strip():
                    yield number, _decoded(line, source) if line is not None else too_long()
        else:
            yield from _jsonl(stream, source)


def _decoded(line: bytes, source: Source) -> dict[str, Any] | str:
    try:
        return {"text": decode(line, fallback=source.fallback_encoding).removesuffix("\n")}
    except UnicodeDecodeError as error:
        return reason(error)


def _jsonl(stream: IO[bytes], source: Source) -> Iterator[Numbered]:
    for number, line in lines(stream):
        if line is None:
            yield number, too_long()
            continue
        if not line.strip():
            continue
        try:
            record = json.loads(decode(line, fallback=source.fallback_encoding))
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            yield number, reason(error) if isinstance(error, UnicodeDecodeError) else f"not valid JSON: {error}"
            continue
        yield (
            number,
            record if isinstance(record, dict) else f"a JSON object was expected, not {type(record).__name__}",
        )


def _csv(
    stream: IO[bytes], path: str, source: Source, wanted: Collection[str], warn: Callable[[str], None]
) -> Iterator[Numbered]:
    rows = CsvRows(stream, path, source, warn)
    header = rows.header
    if not header:
        return
    _check_columns(header, wanted, path, _header_hint(header))
    for number, fields in rows:
        yield number, fields if isinstance(fields, str) else dict(zip(header, fields, strict=True))


def _header_hint(header: list[str]) -> str:
    if "\0" in header[0]:
        return "It looks like UTF-16: save it as UTF-8, or set `fallback_encoding: utf-16-le`"
    delimiter = next((d for d in ";\t|," if d in header[0]), None)
    return f"the delimiter looks like {delimiter!r}: set `delimiter`" if delimiter and len(header) == 1 else ""


def _table(file: Path, path: str, source: Source, wanted: Collection[str]) -> Iterator[Numbered]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    format = "arrow" if source.stage is not None and file.suffix == ".arrow" else source.format
    name = {"parquet": "a Parquet"}.get(format, "an Arrow")
    columns, features = sorted(set(wanted)), None
    number = 0
    try:
        if format == "parquet":
            table = pq.ParquetFile(file, pre_buffer=False)
            names, metadata = table.schema_arrow.names, table.metadata
            size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
            rows = _rows_at_once(size, metadata.num_rows) if source.columns else BATCH
            batches = table.iter_batches(rows, columns=columns)
        else:
            schema, batches = arrow_batches(file)
            names = schema.names
            if format == DATASETS:
                features = FeatureColumns(schema)
                names = features.names
        _check_columns(names, wanted, path)
        if features is not None:
            columns = features.stored(wanted)
        for batch in batches:
            chosen = _plain_times(batch.select(columns))
            rows = _rows_at_once(chosen.nbytes, len(chosen))
            for begin in range(0, len(chosen), rows):
                for record in chosen.slice(begin, rows).to_pylist():
                    number += 1
                    yield number, record if features is None else features.converted(record, wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise StageError(
            f"the file is damaged after row {number:,}: {error}" if number else f"not {name} file: {error}",
            where=f"sources: {path}",
            hint="It may be cut off: fetch it again, or `exclude` it.",
        ) from error


def _plain_times(batch: Any) -> Any:
    """A batch whose times in nanoseconds are in microseconds, or ISO 8601 texts where that would cut them off.

    Python's own datetime has no nanoseconds, and what has them (pandas) need not be installed.
    """
    import pyarrow as pa

    for i, field in enumerate(batch.schema):
        if not pa.types.is_timestamp(field.type) or field.type.unit != "ns":
            continue
        coarse = pa.timestamp("us", field.type.tz)
        try:
            column = batch.column(i).cast(coarse)
        except pa.ArrowInvalid:
            counts = batch.column(i).cast(pa.int64()).to_pylist()
            times = pa.array([None if n is None else n // 1000 for n in counts], coarse).to_pylist()
            column = pa.array(
                [None if n is None else _iso(times[k], n % 1000) for k, n in enumerate(counts)], pa.string()
            )
        batch = batch.set_column(i, field.name, column)
    return batch


def _iso(time: datetime, nanoseconds: int) -> str:
    if not nanoseconds:
        return time.isoformat()
    text = time.isoformat(timespec="microseconds")
    digits = len("2026-01-01T00:00:00.000000")
    return f"{text[:digits]}{nanoseconds:03}{text[digits:]}"


def _rows_at_once(size: int, rows: int) -> int:
    """How many of `rows` rows that take `size` bytes together fit into a batch."""
    return max(1, min(BATCH, BATCH_BYTES * rows // max(size, 1)))


def arrow_batches(file: Path) -> tuple[Any, Iterable[Any]]:
    """The schema and the batches of an Arrow file, memory-mapped, of the random-access or the stream format."""
    import pyarrow as pa

    source = pa.memory_map(str(file))
    try:
        opened = pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        stream = pa.ipc.open_stream(source)
        return stream.schema, stream
    return opened.schema, (opened.get_batch(i) for i in range(opened.num_record_batches))


def _check_columns(header: list[str], wanted: Collection[str], path: str, hint: str = "") -> None:
    """Raises StageError on a column asked for that is not there, or that is there twice. Others are not looked at."""
    where = f"sources: {path}"
    doubled = sorted({name for name in wanted if header.count(name) > 1})
    if doubled:
        raise StageError(
            f"column {doubled[0]!r} is there twice", where=where, hint="Rename one; nobody can say which is meant."
        )
    for name in wanted:
        if name not in header:
            close = difflib.get_close_matches(name, header, n=1)
            guess = f"{hint}. " if hint else f"Did you mean {close[0]!r}? " if close else ""
            raise StageError(
                f"no column {name!r}", where=where, hint=f"{guess}Its columns: {', '.join(map(repr, header[:20]))}."
            )
