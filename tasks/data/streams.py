"""The bytes of a source file as text: decompressed, decoded, never more of it in memory than one row may be long."""

from __future__ import annotations

import gzip
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

LONGEST_ROW = 64 << 20
"""Bytes of a row (or a file that is one example); more is no example but a mistake, and would fill the memory."""
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}


def open_stream(file: Path) -> Any:
    """The bytes of a file, decompressed where its name says that it is compressed."""
    kind = COMPRESSED.get(file.suffix)
    if kind is None:
        return file.open("rb")
    if kind == "gzip":
        return gzip.open(file)
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(str(file), compression=kind))


def whole(file: Path) -> bytes | None:
    """All of a file, or None if it is too long to be one example."""
    with open_stream(file) as stream:
        raw: bytes = stream.read(LONGEST_ROW + 1)
    return None if len(raw) > LONGEST_ROW else raw


def lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
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


def decode(raw: bytes, *, python: bool = False, fallback: str | None = None) -> str:
    """Bytes as text: UTF-8 (a byte order mark is dropped), else `fallback`; as PEP 263 says for Python files.

    Newlines become \\n. Raises UnicodeDecodeError, or SyntaxError for a coding line that names no known encoding.
    """
    if python:
        text = raw.decode(tokenize.detect_encoding(io.BytesIO(raw).readline)[0])
    else:
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            if fallback is None:
                raise
            text = _in_fallback(raw, fallback)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _in_fallback(raw: bytes, encoding: str) -> str:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        error.encoding = f"utf-8 or {encoding}"  # its own may be `charmap`
        raise


def too_long() -> str:
    """Why such a row is set aside."""
    return f"longer than {LONGEST_ROW >> 20} MiB"


def reason(error: BaseException) -> str:
    """Why bytes are no text, for people."""
    if isinstance(error, UnicodeDecodeError):
        return f"not {error.encoding} text (byte {error.start})"
    if isinstance(error, SyntaxError):
        return f"not valid Python: {error.msg}"
    return f"{type(error).__name__}: {error}"
