"""From one file to rows, in constant memory. What cannot be read is set aside with its reason, never guessed at.

A file that is damaged as a whole (a truncated archive, a table without the columns asked for) is an error: nobody knows
what is missing. A row, or a file that is one example, is set aside and counted.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import io
import json
import tokenize
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from infra.errors import StageError
from tasks.data.functions import python_functions
from tasks.data.sources import WHOLE_FILE, Source, package_of
from tasks.data.templates import Text, text_maker

LONGEST_ROW = 64 << 20
"""Bytes of a row (or a file that is one example); more is no example but a mistake, and would fill the memory."""
BATCH = 1024
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}


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


Numbered = Iterator[tuple[int | None, Row | Rejected]]


def read_rows(file: Path, path: str, source: Source, columns: Columns) -> Iterator[Row | Rejected]:
    """Every row of a local file in order, and a `Rejected` for each row (or the file) that is unusable.

    path: its name in ids. Raises StageError if the file is damaged or lacks a column, OSError if it cannot be opened.
    """
    try:
        found = _documents if source.format in WHOLE_FILE else _records
        for line, item in found(file, path, source, columns):
            wrong = _not_text(item) if isinstance(item, Row) else None
            yield Rejected(path, line, wrong) if wrong else item
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged(path, error) from error  # pyarrow's word for a broken archive


def _damaged(path: str, error: BaseException) -> StageError:
    return StageError(
        f"the file is damaged: {error}",
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


def open_stream(file: Path) -> Any:
    """The bytes of a file, decompressed where its name says that it is compressed."""
    kind = COMPRESSED.get(file.suffix)
    if kind is None:
        return file.open("rb")
    if kind == "gzip":
        return gzip.open(file)
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(str(file), compression=kind))


def _documents(file: Path, path: str, source: Source, columns: Columns) -> Numbered:
    label = package_of(path, source) if columns.label_from_package else None
    with open_stream(file) as stream:
        raw = stream.read(LONGEST_ROW + 1)
    if len(raw) > LONGEST_ROW:
        yield None, Rejected(path, None, _too_long())
        return
    try:
        text = decode(raw, python=path.endswith(".py"))
        if source.format == "text":
            yield None, Row(path, text, path, label)
            return
        found = python_functions(text)
    except (UnicodeError, LookupError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        yield line, Rejected(path, line, _reason(error))
        return
    for name, code in found:
        yield None, Row(f"{path}::{name}", code, path, label)


def decode(raw: bytes, *, python: bool) -> str:
    """Bytes as text: UTF-8 (a byte order mark is dropped), or as PEP 263 says for Python files; newlines become \\n.

    Raises UnicodeDecodeError, or SyntaxError for a coding line that names no known encoding.
    """
    encoding = tokenize.detect_encoding(io.BytesIO(raw).readline)[0] if python else "utf-8-sig"
    return raw.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def _too_long() -> str:
    return f"longer than {LONGEST_ROW >> 20} MiB"


def _reason(error: BaseException) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not {error.encoding} text (byte {error.start})"
    if isinstance(error, SyntaxError):
        return f"not valid Python: {error.msg}"
    return f"{type(error).__name__}: {error}"


def _records(file: Path, path: str, source: Source, columns: Columns) -> Numbered:
    taken: dict[str, int] = {}
    make = text_maker(source)
    # Rows of another stage's dataset have names and groups that hold everywhere.
    prefix = "" if source.stage is not None else f"{path}#"
    id_column, group_column = _names(source, columns)
    for line, record in _parsed(file, path, source, columns):
        text = record if isinstance(record, str) else make(record)
        if not isinstance(text, Text):
            yield line, Rejected(path, line, text)
            continue
        assert isinstance(record, dict)
        name = _cell(record, id_column) or hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
        taken[name] = taken.get(name, 0) + 1
        if taken[name] > 1:
            name = f"{name}-{taken[name]}"
        label = package_of(path, source) if columns.label_from_package else _cell(record, columns.label)
        yield line, Row(f"{prefix}{name}", str(text), _cell(record, group_column) or path, label)


def _names(source: Source, columns: Columns) -> tuple[str | None, str | None]:
    """Columns of a row's id and group."""
    if source.stage is not None:
        return "id", columns.group or "group"
    return source.id_column, columns.group


def _cell(record: dict[str, Any], column: str | None) -> str | None:
    value = record.get(column) if column else None
    return None if value is None or value == "" else value if isinstance(value, str) else json.dumps(value)


def _parsed(
    file: Path, path: str, source: Source, columns: Columns
) -> Iterator[tuple[int | None, dict[str, Any] | str]]:
    """(line, record) or (line, what is wrong with it)."""
    wanted = [*text_maker(source).columns, *filter(None, (columns.label, *_names(source, columns)))]
    if source.format in ("parquet", "arrow"):
        yield from _table(file, path, source, wanted)
        return
    with open_stream(file) as stream:
        if source.format == "csv":
            yield from _csv(stream, path, source, wanted)
        elif source.format == "lines":
            for number, line in _lines(stream):
                if line is None or line.strip():
                    yield number, _decoded(line) if line is not None else _too_long()
        else:
            yield from _jsonl(stream)


def _decoded(line: bytes) -> dict[str, Any] | str:
    try:
        return {"text": decode(line, python=False).removesuffix("\n")}
    except UnicodeDecodeError as error:
        return _reason(error)


def _jsonl(stream: IO[bytes]) -> Iterator[tuple[int | None, dict[str, Any] | str]]:
    for number, line in _lines(stream):
        if line is None:
            yield number, _too_long()
            continue
        if not line.strip():
            continue
        try:
            record = json.loads(decode(line, python=False))
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            yield number, _reason(error) if isinstance(error, UnicodeDecodeError) else f"not valid JSON: {error}"
            continue
        yield (
            number,
            record if isinstance(record, dict) else f"a JSON object was expected, not {type(record).__name__}",
        )


def _lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """(number from 1, line), None for a line that is too long, of which no more than that is held."""
    number = 0
    while line := stream.readline(LONGEST_ROW + 1):
        number += 1
        whole = len(line) <= LONGEST_ROW or line.endswith(b"\n")
        while not whole:
            rest = stream.readline(1 << 20)
            whole = not rest or rest.endswith(b"\n")
            line = b""
        yield number, line or None


def _csv(
    stream: IO[bytes], path: str, source: Source, wanted: Iterable[str]
) -> Iterator[tuple[int | None, dict[str, Any] | str]]:
    csv.field_size_limit(LONGEST_ROW)
    too_long: list[int] = []
    rows = csv.DictReader(_text_lines(stream, too_long), delimiter=source.delimiter, strict=True)
    try:
        header = list(rows.fieldnames or [])
        if not header:
            return
        hint = next((f"the delimiter looks like {d!r}: set `delimiter`" for d in ";\t|," if d in header[0]), "")
        _check_columns(header, wanted, path, hint if len(header) == 1 else "")
        for record in rows:
            wrong = None in record or None in record.values()
            yield rows.line_num, "another number of fields than the header" if wrong else record
    except csv.Error as error:
        yield rows.line_num, f"not valid CSV: {error}; nothing after it was read"
    for number in too_long:
        yield number, _too_long()


def _text_lines(stream: IO[bytes], too_long: list[int]) -> Iterator[str]:
    """Lines as text; a byte that is no UTF-8 becomes half a surrogate pair, which rejects its row and no other."""
    for number, line in _lines(stream):
        if line is None:
            too_long.append(number)
        else:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")


def _table(
    file: Path, path: str, source: Source, wanted: Iterable[str]
) -> Iterator[tuple[int | None, dict[str, Any] | str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = {"parquet": "a Parquet", "arrow": "an Arrow"}[source.format]
    number = 0
    try:
        if source.format == "parquet":
            table = pq.ParquetFile(file)
            names, batches = table.schema_arrow.names, table.iter_batches(BATCH, columns=sorted(set(wanted)))
        else:
            names, batches = _arrow(file)
        _check_columns(names, wanted, path)
        for batch in batches:
            for record in batch.select(sorted(set(wanted))).to_pylist():
                number += 1
                yield number, record
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise StageError(
            f"not {name} file: {error}",
            where=f"sources: {path}",
            hint="It may be cut off: fetch it again, or `exclude` it.",
        ) from error


def _arrow(file: Path) -> tuple[list[str], Iterable[Any]]:
    """Column names and batches of an Arrow file, memory-mapped, of the random-access or the stream format."""
    import pyarrow as pa

    source = pa.memory_map(str(file))
    try:
        opened = pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        stream = pa.ipc.open_stream(source)
        return stream.schema.names, stream
    return opened.schema.names, (opened.get_batch(i) for i in range(opened.num_record_batches))


def _check_columns(header: list[str], wanted: Iterable[str], path: str, hint: str = "") -> None:
    """Raises StageError on a column that is not there, or that is there twice."""
    where = f"sources: {path}"
    doubled = sorted({name for name in header if header.count(name) > 1})
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
