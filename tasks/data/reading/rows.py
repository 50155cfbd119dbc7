"""From one file to rows, in constant memory. What cannot be read is set aside with its reason, never guessed at.

A file that is damaged as a whole (a truncated archive, a table without the columns asked for) is an error: nobody knows
what is missing. A row, or a file that is one example, is set aside and counted.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import StageError
from tasks.data.hashing import content_digest, short_hash
from tasks.data.plain_values import plain, plain_text
from tasks.data.reading.column_names import ColumnNames
from tasks.data.reading.functions import python_functions
from tasks.data.reading.names import GivenNames
from tasks.data.reading.records import records
from tasks.data.reading.sources import WHOLE_FILE, Source, folder_of, package_of
from tasks.data.reading.streams import decode, reason, too_long, whole
from tasks.data.reading.templates import Text, text_maker
from tasks.data.reading.typed_columns import MEDIA, Values, values_reader


@dataclass(frozen=True)
class Row:
    """One example. `group` is what must not be torn over two splits, `label` its class where the data has one.

    values: those of the columns that pass through (`Source.columns`), sorted by the columns' names.
    """

    id: str
    text: str
    group: str
    label: str | None = None
    values: Values = ()


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
    label_from_folder: bool = False


Numbered = Iterator[tuple[int | None, Row | Rejected]]


def read_rows(
    file: Path,
    path: str,
    source: Source,
    columns: Columns,
    warn: Callable[[str], None] = lambda sentence: None,
    names: ColumnNames | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Iterator[Row | Rejected]:
    """Every row of a local file in order, and a `Rejected` for each row (or the file) that is unusable.

    path: its name in ids. warn: takes what the user should look at. names: notes the columns of its records.
    metadata: of an image or sound, its record in the metadata beside it.
    Raises StageError if the file is damaged or lacks a column, OSError if it cannot be opened.
    """
    count = 0
    try:
        if source.format in MEDIA:
            found = _media(file, path, source, columns, metadata or {})
        elif source.format in WHOLE_FILE:
            found = _documents(file, path, source, columns)
        else:
            found = _records(file, path, source, columns, warn, names or ColumnNames())
        for line, item in found:
            count += 1
            wrong = _not_text(item) if isinstance(item, Row) else None
            yield Rejected(path, line, wrong) if wrong else item
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, error, count) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged(path, error, count) from error  # pyarrow's word for a broken archive


def _damaged(path: str, error: BaseException, rows: int) -> StageError:
    after = f" after {rows:,} rows" if rows else ""
    return StageError(
        f"the file is damaged{after}: {error}",
        where=f"sources: {path}",
        hint="It may be cut off: fetch it again, or `exclude` it.",
    )


def _not_text(row: Row) -> str | None:
    """JSON can spell half a surrogate pair, which no file can hold as UTF-8; a NUL says the file is binary."""
    together = "".join((row.id, row.text, row.group, row.label or ""))
    if "\0" in together:
        return "it holds NUL bytes, so it is no text"
    try:
        together.encode()
    except UnicodeEncodeError:
        return "half a surrogate pair is no character"
    return None


def _documents(file: Path, path: str, source: Source, columns: Columns) -> Numbered:
    label = _of_path(path, source, columns)
    raw = whole(file)
    if raw is None:
        yield None, Rejected(path, None, too_long())
        return
    try:
        text = decode(raw, python=path.endswith(".py"), fallback=source.fallback_encoding)
        if source.format == "text":
            yield None, Row(path, text, path, label)
            return
        found = python_functions(text)
    except (UnicodeError, LookupError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        yield line, Rejected(path, line, reason(error))
        return
    for name, code in found:
        yield None, Row(f"{path}::{name}", code, path, label)


def _of_path(path: str, source: Source, columns: Columns) -> str | None:
    """The label that the file's folders give."""
    if columns.label_from_folder:
        return plain_text(folder_of(path, source))
    return plain_text(package_of(path, source)) if columns.label_from_package else None


def _media(file: Path, path: str, source: Source, columns: Columns, metadata: Mapping[str, Any]) -> Numbered:
    """The one row of an image or a sound; its text is empty."""
    raw = whole(file)
    if raw is None:
        yield None, Rejected(path, None, too_long())
        return
    read = values_reader(source.columns or {}, empty_is_missing=True)
    values = read({**metadata, source.format: raw})
    if isinstance(values, str):
        yield None, Rejected(path, None, values)
        return
    try:
        label = _plain_cell(columns.label, "label")(dict(metadata)) or _of_path(path, source, columns)
        group = _plain_cell(columns.group, "group")(dict(metadata))
    except ValueError as error:
        yield None, Rejected(path, None, str(error))
        return
    yield None, Row(path, "", group or path, label, values)


def _records(
    file: Path, path: str, source: Source, columns: Columns, warn: Callable[[str], None], names: ColumnNames
) -> Numbered:
    given = GivenNames()
    make = text_maker(source)
    passing = source.columns or {}
    values_of = values_reader(passing, empty_is_missing=source.format == "csv")
    # Rows of another stage's dataset have names and groups that hold everywhere.
    prefix = "" if source.stage is not None else f"{path}#"
    id_column, group_column = source.id_column, columns.group
    if source.stage is not None:
        id_column, group_column = "id", columns.group or "group"
    wanted = [*make.columns, *passing, *filter(None, (columns.label, id_column, group_column))]
    label_of, group_of, id_of = (
        _plain_cell(*pair) for pair in ((columns.label, "label"), (group_column, "group"), (id_column, "id"))
    )
    package = _of_path(path, source, columns)
    for line, record in names.of_file(wanted, records(file, path, source, wanted, warn)):
        text = record if isinstance(record, str) else make(record)
        if not isinstance(text, Text):
            yield line, Rejected(path, line, text)
            continue
        assert isinstance(record, dict)
        values = values_of(record)
        if isinstance(values, str):
            yield line, Rejected(path, line, values)
            continue
        try:
            label, group, given_id = label_of(record), group_of(record), id_of(record)
        except ValueError as error:
            yield line, Rejected(path, line, str(error))
            continue
        name = given_id or content_digest(text, values).hex()[:16]
        # Without an id of its own its name is 64 bits already.
        times = given.give(short_hash(name) if given_id else int(name, 16))
        if times > 1:
            name = f"{name}-{times}"
        yield line, Row(f"{prefix}{name}", str(text), group or path, package or label, values)


def _plain_cell(column: str | None, what: str) -> Callable[[dict[str, Any]], str | None]:
    """record -> the column's value in its normal form, None where it is missing; ValueError on what is no `what`."""
    if column is None:
        return lambda record: None

    def cell(record: dict[str, Any]) -> str | None:
        try:
            return plain(record.get(column))
        except ValueError as error:
            raise ValueError(f"column {column!r} holds {error}, which is no {what}") from error

    return cell
