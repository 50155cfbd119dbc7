"""Text of others on a terminal: labels, file names and error messages may hold what would steer it.

Escape sequences recolour and overwrite what stands there, others change the direction of writing. Each such character
becomes a mark that can be seen; so does one that no encoding can write, which file names that are not UTF-8 hold.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
MARK = "\N{REPLACEMENT CHARACTER}"


def printable(text: str) -> str:
    """`text` with a mark for each character that steers a terminal; line feeds and tabs stay."""
    return STEERS.sub(MARK, text)


def one_line(text: str) -> str:
    """`text` as a single printable line."""
    return " ".join(printable(text).split())


class PlainOutput:
    """A text stream that passes on what is printable. Everything but writing is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(printable(text))

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def plain_stdout() -> Iterator[None]:
    """What is printed meanwhile is printable, whatever encoding the terminal has."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    with contextlib.redirect_stdout(PlainOutput(sys.stdout)):
        yield
