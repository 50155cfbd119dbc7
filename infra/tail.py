"""Reading a file that others append to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from infra.json_values import parse_json

CHUNK_BYTES = 1 << 20


class Tail:
    """Complete lines appended to a file since the last look, in bounded pieces. `rest`: what no newline ends yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset, self.rest = 0, b""

    def lines(self) -> list[bytes]:
        try:
            with self.path.open("rb") as stream:
                stream.seek(self._offset)
                chunk = stream.read(CHUNK_BYTES)
        except FileNotFoundError:
            return []
        self._offset += len(chunk)
        *lines, self.rest = (self.rest + chunk).split(b"\n")
        return lines


def json_objects(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The lines that are JSON objects; others were torn by a kill, or are damaged."""
    for line in lines:
        try:
            found = parse_json(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found
