"""From files to rows. What cannot be read as text is set aside with its reason, never guessed at."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from infra.errors import StageError
from tasks.data.functions import python_functions
from tasks.data.sources import FoundFile, unreadable

MAX_CSV_FIELD = 1 << 27


@dataclass(frozen=True)
class Row:
    """One example. `group` is what must not be torn over two splits, `label` its class where the data has one."""

    id: str
    text: str
    group: str
    label: str | None = None


@dataclass(frozen=True)
class Rejected:
    """Something that could not be read: the file, the line (None: all of it), and why."""

    path: str
    line: int | None
    reason: str


@dataclass(frozen=True)
class Columns:
    """Which columns of a row give its label and its group; None: from the file's path."""

    label: str | None = None
    group: str | None = None
    label_from_package: bool = False


def read_rows(files: Iterable[FoundFile], columns: Columns) -> Iterator[Row | Rejected]:
    """Every row of the files, in file order, and a `Rejected` for each file or row that is unusable."""
    for file in files:
        try:
            raw = file.location.read_bytes()
        except OSError as error:
            raise unreadable(file, error) from error
        found = _documents if file.source.format in ("text", "python_functions") else _records
        for line, item in found(file, raw, columns):
            wrong = _not_text(item) if isinstance(item, Row) else None
            yield Rejected(file.path, line, wrong) if wrong else item


def _not_text(row: Row) -> str | None:
    """JSON can spell half a surrogate pair, which no file can hold as UTF-8."""
    try:
        "".join((row.id, row.text, row.group, row.label or "")).encode()
    except UnicodeEncodeError:
        return "half a surrogate pair is no character"
    return None


Numbered = Iterator[tuple[int | None, Row | Rejected]]


def _documents(file: FoundFile, raw: bytes, columns: Columns) -> Numbered:
    label = file.package if columns.label_from_package else None
    try:
        text = decode(raw, python=file.path.endswith(".py"))
        if file.source.format == "text":
            yield None, Row(file.path, text, file.path, label)
            return
        found = python_functions(text)
    except (UnicodeError, LookupError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        yield line, Rejected(file.path, line, _reason(error))
        return
    for name, source in found:
        yield None, Row(f"{file.path}::{name}", source, file.path, label)


def decode(raw: bytes, *, python: bool) -> str:
    """Bytes as text: UTF-8 (a byte order mark is dropped), or as PEP 263 says for Python files; newlines become \\n.

    Raises UnicodeDecodeError, or SyntaxError for a coding line that names no known encoding.
    """
    encoding = tokenize.detect_encoding(io.BytesIO(raw).readline)[0] if python else "utf-8-sig"
    return raw.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def _reason(error: BaseException) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not {error.encoding} text (byte {error.start})"
    if isinstance(error, SyntaxError):
        return f"not valid Python: {error.msg}"
    return f"{type(error).__name__}: {error}"


def _records(file: FoundFile, raw: bytes, columns: Columns) -> Numbered:
    taken: dict[str, int] = {}
    for line, record in _parsed(file, raw):
        if isinstance(record, str):
            yield line, Rejected(file.path, line, record)
            continue
        text = record.get(file.source.text_column)
        if not isinstance(text, str):
            known = ", ".join(sorted(map(str, record))[:8])
            yield (
                line,
                Rejected(file.path, line, f"column {file.source.text_column!r} holds no text (columns: {known})"),
            )
            continue
        name = _cell(record, file.source.id_column) or hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
        taken[name] = taken.get(name, 0) + 1
        if taken[name] > 1:
            name = f"{name}-{taken[name]}"
        label = file.package if columns.label_from_package else _cell(record, columns.label)
        yield line, Row(f"{file.path}#{name}", text, _cell(record, columns.group) or file.path, label)


def _cell(record: dict[str, Any], column: str | None) -> str | None:
    value = record.get(column) if column else None
    return None if value is None or value == "" else value if isinstance(value, str) else json.dumps(value)


def _parsed(file: FoundFile, raw: bytes) -> Iterator[tuple[int | None, dict[str, Any] | str]]:
    """(line, record) or (line, what is wrong with it)."""
    if file.source.format == "parquet":
        yield from _parquet(file, raw)
    elif file.source.format == "csv":
        try:
            text = decode(raw, python=False)
        except UnicodeDecodeError as error:
            yield None, _reason(error)
            return
        csv.field_size_limit(MAX_CSV_FIELD)
        rows = csv.DictReader(io.StringIO(text), strict=True)
        try:
            for record in rows:
                wrong = None in record or None in record.values()
                yield rows.line_num, "another number of fields than the header" if wrong else record
        except csv.Error as error:
            yield rows.line_num, f"not valid CSV: {error}"
    else:
        for number, line in enumerate(raw.split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                record = json.loads(decode(line, python=False))
            except (UnicodeDecodeError, ValueError, RecursionError) as error:
                reason = _reason(error) if isinstance(error, UnicodeDecodeError) else f"not valid JSON: {error}"
                yield number, reason
                continue
            yield (
                number,
                record if isinstance(record, dict) else f"a JSON object was expected, not {type(record).__name__}",
            )


def _parquet(file: FoundFile, raw: bytes) -> Iterator[tuple[int | None, dict[str, Any] | str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(raw))
    except (pa.ArrowInvalid, OSError) as error:
        raise StageError(f"not a Parquet file: {error}", where=f"sources: {file.path}") from error
    yield from enumerate(table.to_pylist(), 1)
