"""Rows of a csv file, where a stray quote costs its own line and not the rest of the file.

A quote that opens a field takes in every line up to the next quote, so one that nobody closes swallows rows. Three
things distinguish such a row from a field that rightly has line breaks in it, in this order:

- It is not valid: something stands behind its closing quote, or the file (or the longest row allowed) ends first.
- It has another number of fields than the header, and half of its further lines are rows by themselves.
- It is valid, but of its further lines, twenty or more, nine in ten are rows by themselves. They also have to look like
  the rows before it, column by column: a number, a word, a text ... Lines of prose or logs may have as many commas.

Then its first line is set aside with the reason, and reading goes on at the next line. Until a row is whole again, a
line with an odd number of quotes is taken for the end of what was broken, not for a row. What spans very many lines and
shows none of the three signs is read as it stands, and said. `quoting: none` reads quotes as text, so nothing is
swallowed.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import IO, NamedTuple

from infra.errors import StageError
from tasks.data.reading.sources import Source
from tasks.data.reading.streams import LONGEST_ROW, lines, too_long

QUOTE = '"'
MANY = 20
"""Lines from which on a valid row is suspected to have swallowed them."""
VERY_MANY = 1000
"""Lines from which on a row that is read is said to the user."""
LEARNED, ENOUGH, RARE = 1000, 5, 0.05
"""Rows from which it is learned what columns look like; how few say nothing; what share of them is no habit."""
NUMBER = re.compile(r"[-+]?\d[\d.,:/eE-]*")
OTHER_FIELDS = "another number of fields than the header"


class Line(NamedTuple):
    """A line of the file; text: None where it is too long to be held."""

    number: int
    text: str | None


class CsvRows:
    """The rows of a stream. `header` is read at once; StageError where it cannot be."""

    def __init__(self, stream: IO[bytes], path: str, source: Source, warn: Callable[[str], None]) -> None:
        csv.field_size_limit(LONGEST_ROW)
        self._path, self._warn = path, warn
        self._parse = partial(
            csv.reader,
            delimiter=source.delimiter,
            quoting=csv.QUOTE_NONE if source.quoting == "none" else csv.QUOTE_MINIMAL,
            escapechar=source.escape,
            strict=True,
        )
        self._lines = _Lines(stream, source.fallback_encoding)
        self._reader = self._parse(self._lines)
        self._usual = _Usual()
        self._swallowing: list[int] = []
        self._longest: tuple[int, int] = (0, 0)
        self.header = self._header()

    def _header(self) -> list[str]:
        fields, wrong = self._next()
        if wrong:
            raise StageError(
                f"the header cannot be read: {wrong}",
                where=f"sources: {self._path}",
                hint="The first line names the columns. `quoting: none` reads quotes as text.",
            )
        return fields or []

    def __iter__(self) -> Iterator[tuple[int, list[str] | str]]:
        """(line, fields) of each row, or (line, why it is set aside)."""
        broken = False
        while True:
            fields, wrong = self._next()
            taken = self._lines.taken
            if fields is None and not taken:
                break
            if not taken or (fields == [] and not wrong):
                continue  # a blank line
            number = taken[0].number
            if not wrong and fields is not None:
                wrong = self._suspicion(fields, broken)
            if not wrong and fields is not None:
                broken = False
                self._longest = max(self._longest, (len(taken), number))
                self._usual.learn(fields)
                yield number, fields
                continue
            alone = wrong.startswith(OTHER_FIELDS)
            if len(taken) > 1 and not alone:
                self._swallowing.append(number)
                self._lines.give_back(taken[1:])
                wrong += "; reading went on at the next line"
            broken = broken or not alone
            yield number, wrong
        self._say()

    def _next(self) -> tuple[list[str] | None, str]:
        """(fields, "") or (None, what is wrong); both empty at the end of the file."""
        self._lines.begin()
        try:
            fields = next(self._reader, None)
        except csv.Error as error:
            taken = self._lines.taken
            if len(taken) == 1 and _inner_returns(taken[0]):
                self._lines.give_back(_inner_returns(taken[0]))
                return self._next()
            where = f" in line {taken[-1].number}" if len(taken) > 1 else ""
            return None, f"not valid CSV: {_reason(error)}{where}"
        if fields is None and self._lines.taken:
            return None, too_long()
        return fields, ""

    def _suspicion(self, fields: Sequence[str], broken: bool) -> str:
        """Why a row that was read is set aside, or empty."""
        taken = self._lines.taken
        if len(fields) == len(self.header):
            inner = taken[1:-1]
            known = self._usual.rows >= ENOUGH
            if known and len(inner) >= MANY and self._rows_in(inner) >= 0.9 * len(inner):
                return f"a quote that it opens takes in {len(taken) - 1:,} lines which look like rows"
            odd = broken and len(taken) == 1 and (taken[0].text or "").count(QUOTE) % 2
            return "the end of a row that is broken: a quote without its other one" if odd else ""
        wrong = f"{OTHER_FIELDS} ({len(fields)} instead of {len(self.header)})"
        if len(taken) == 1:
            return wrong
        if self._rows_in(taken[1:]) * 2 >= len(taken) - 1:
            return f"a quote that it opens takes in lines which look like rows, up to line {taken[-1].number}"
        return f"{wrong}, lines {taken[0].number} to {taken[-1].number}"

    def _rows_in(self, taken: Sequence[Line]) -> int:
        """How many lines are rows by themselves. Of one column every line would be, so that says nothing."""
        if len(self.header) < 2:
            return 0
        found = 0
        for line in taken:
            try:
                fields = next(self._parse([line.text or ""]), [])
            except csv.Error:
                continue
            whole = len(fields) == len(self.header) and (line.text or "").count(QUOTE) % 2 == 0
            found += whole and self._usual.has(fields)
        return found

    def _say(self) -> None:
        if self._swallowing:
            self._warn(
                f"{self._path}: quotes that are opened and not closed as they should be: {len(self._swallowing)}, the "
                f"first in line {self._swallowing[0]}; these lines are set aside, those after them were read by "
                "themselves (`quoting: none` reads quotes as text)"
            )
        if self._longest[0] >= VERY_MANY:
            self._warn(
                f"{self._path}: the row of line {self._longest[1]} spans {self._longest[0]:,} lines; if a quote there "
                "was left open, mend it or set `quoting: none`"
            )


class _Usual:
    """What the columns of a file look like, by its first rows."""

    def __init__(self) -> None:
        self.rows = 0
        self._shapes: Counter[tuple[int, str]] = Counter()

    def learn(self, fields: Sequence[str]) -> None:
        if self.rows < LEARNED:
            self.rows += 1
            self._shapes.update(enumerate(map(_shape, fields)))

    def has(self, fields: Sequence[str]) -> bool:
        """Whether a row is like them in each column; True while too few are known."""
        if self.rows < ENOUGH:
            return True
        return all(self._shapes[place, _shape(value)] >= RARE * self.rows for place, value in enumerate(fields))


def _shape(value: str) -> str:
    if not value or value[0].isspace():
        return "space" if value else "empty"
    if NUMBER.fullmatch(value):
        return "number"
    return "text" if any(map(str.isspace, value)) else "word"


class _Lines:
    """The lines of a stream as text, for a csv reader; `taken`: those it took since `begin`.

    A row ends where it gets too long, as if the file did.
    """

    def __init__(self, stream: IO[bytes], fallback: str | None) -> None:
        self._stream, self._fallback = lines(stream), fallback
        self._waiting: deque[Line] = deque()
        self._size = 0
        self.taken: list[Line] = []

    def begin(self) -> None:
        self.taken, self._size = [], 0

    def give_back(self, taken: Sequence[Line]) -> None:
        """Lines to be read again, as the next ones."""
        self._waiting.extendleft(reversed(taken))

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self._size > LONGEST_ROW or (self.taken and self.taken[-1].text is None):
            raise StopIteration
        line = self._waiting.popleft() if self._waiting else Line(*self._decoded(next(self._stream)))
        self.taken.append(line)
        if line.text is None:
            raise StopIteration
        self._size += len(line.text)
        return line.text

    def _decoded(self, line: tuple[int, bytes | None]) -> tuple[int, str | None]:
        """A byte that is no text becomes half a surrogate pair, which rejects its row and no other."""
        number, raw = line
        if raw is None:
            return number, None
        try:
            return number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            return number, raw.decode(self._fallback or "utf-8", "surrogateescape")


def _inner_returns(line: Line) -> list[Line]:
    """A line that has the line ends of old Macs within, as lines of one number; else none."""
    text = (line.text or "").rstrip("\r\n")
    return [Line(line.number, f"{part}\n") for part in text.split("\r")] if "\r" in text else []


def _reason(error: csv.Error) -> str:
    return {
        "unexpected end of data": "a quote is opened and never closed",
        f"field larger than field limit ({LONGEST_ROW})": too_long(),
    }.get(str(error), str(error))
