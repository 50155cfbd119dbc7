"""The bytes of a source file as text: decompressed, decoded, never more of it in memory than one row may be long."""

from __future__ import annotations

import codecs
import gzip
import io
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

LONGEST_ROW = 64 << 20
"""Bytes of a row (or a file that is one example); more is no example but a mistake, and would fill the memory."""
HEAD = 1 << 16
"""Bytes from which the encoding and the line ends of a file are recognised."""
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
codecs.register_error("no_text", lambda error: ("\udcff", getattr(error, "end", 0)))  # surrogateescape's 0xff
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}


def open_stream(file: Path) -> Any:
    """The bytes of a file, decompressed where its name says that it is compressed. Raises EOFError on an empty one."""
    kind = COMPRESSED.get(file.suffix.lower())
    if kind is None:
        return file.open("rb")
    if not file.stat().st_size:
        raise EOFError("a compressed file has some bytes even if nothing is in it, and this one has none")
    if kind == "gzip":
        return gzip.open(file)
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(str(file), compression=kind))


def open_text(file: Path, fallback: str | None = None) -> IO[bytes]:
    """As `open_stream`, with the encodings and line ends made one that would hide where the lines are.

    UTF-16 and UTF-32 with a byte order mark become UTF-8; so does all of a file with NUL bytes where `fallback` is such
    an encoding. In a file that has none but the line ends of old Macs, these become \\n.
    """
    stream = io.BufferedReader(open_stream(file), HEAD)
    head = stream.peek(HEAD)
    encoding = _marked(head)
    if encoding is None and fallback is not None and b"\0" in head and "\n".encode(fallback) != b"\n":
        encoding = fallback
    recode = _recoder(encoding) if encoding else None
    if encoding:
        head = _recoder(encoding)(head, False)
    returns = b"\r" in head and b"\n" not in head
    if recode is None and not returns:
        return stream

    def convert(raw: bytes, final: bool) -> bytes:
        raw = recode(raw, final) if recode else raw
        return raw.replace(b"\r", b"\n") if returns else raw

    return io.BufferedReader(_Converted(stream, convert), HEAD)


class _Converted(io.RawIOBase):
    """A stream whose bytes go through `convert`, which learns when the last ones come."""

    def __init__(self, stream: IO[bytes], convert: Callable[[bytes, bool], bytes]) -> None:
        self._stream, self._convert = stream, convert
        self._ready, self._ended = b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._ended:
            raw = self._stream.read(HEAD)
            self._ended = not raw
            self._ready = self._convert(raw, self._ended)
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


def _marked(head: bytes) -> str | None:
    """The encoding that a byte order mark says, other than UTF-8. UTF-32's begins like UTF-16's."""
    return next((name for mark, name in MARKS if head.startswith(mark)), None)


def _recoder(encoding: str) -> Callable[[bytes, bool], bytes]:
    """Bytes of an encoding, a piece at a time, as UTF-8. What is no text becomes a byte that is none there either."""
    decoder = codecs.getincrementaldecoder(encoding)("no_text")
    return lambda raw, final: decoder.decode(raw, final).encode("utf-8", "surrogateescape")


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
    """Bytes as text: UTF-8 or what a byte order mark (dropped) says, else `fallback`; for Python files as PEP 263 says.

    Newlines become \\n. Raises UnicodeDecodeError, or SyntaxError for a coding line that names no known encoding.
    """
    if python:
        text = raw.decode(tokenize.detect_encoding(io.BytesIO(raw).readline)[0])
    else:
        try:
            text = raw.decode(_marked(raw) or "utf-8-sig")
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
