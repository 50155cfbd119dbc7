"""What is worked on at once: a table is a shard of its own, small files are bundled.

Work on a shard is keyed by its content, so a bundle must not change because a file was added elsewhere: it ends where
the hash of a path says so, not after a number of files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from tasks.data.reading.found_files import FoundFile
from tasks.data.reading.sources import WHOLE_FILE, Source

FILES = 64
"""Files in a bundle, on average."""
LARGEST = 32 << 20
"""Bytes from which on a bundle is closed."""


@dataclass(frozen=True)
class Shard:
    """Some files of one source, with their digests. `name`: path of the first, which no other has."""

    source: int
    files: tuple[FoundFile, ...]

    @property
    def name(self) -> str:
        return self.files[0].path

    @property
    def size(self) -> int:
        """Bytes, as stored."""
        return sum(file.place.size for file in self.files)

    def content(self) -> list[list[Any]]:
        """What the files are, wherever they lie: for the key."""
        return [[file.path, file.sha256, *([file.metadata] if file.metadata else [])] for file in self.files]

    def places(self) -> list[dict[str, Any]]:
        """Where they are, for whoever works on the shard."""
        return [
            {"location": f.place.location, "path": f.path, "sha256": f.sha256}
            | ({"metadata": f.metadata} if f.metadata else {})
            for f in self.files
        ]


def shards_of(files: Sequence[FoundFile], sources: Sequence[Source]) -> list[Shard]:
    """The files (with digests) as shards, sorted by name."""
    numbers = {id(source): i for i, source in enumerate(sources)}
    ordered = sorted(files, key=lambda file: (numbers[id(file.source)], file.path))
    found: list[Shard] = []
    for number, group in groupby(ordered, key=lambda file: numbers[id(file.source)]):
        bundled = sources[number].format in WHOLE_FILE
        found += [Shard(number, tuple(part)) for part in (_bundles(list(group)) if bundled else [[f] for f in group])]
    return sorted(found, key=lambda shard: shard.name)


def _bundles(files: list[FoundFile]) -> list[list[FoundFile]]:
    found: list[list[FoundFile]] = []
    size = LARGEST
    for file in files:
        closes = hashlib.sha256(file.path.encode("utf-8", "surrogatepass")).digest()[0] % FILES == 0
        if closes or size >= LARGEST:
            found.append([])
            size = 0
        found[-1].append(file)
        size += file.place.size
    return found
