"""What a job read from outside the store, compared with what its key says.

A key is made before its stage waits for the claim and for a slot, and files change meanwhile. So a stage with `sources`
says what it read (`Job.has_read`), by the digests of the very bytes it worked on; no artifact is committed without that
word, and none whose key says something else. `tasks/run/execute.py` then makes the key again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra import source_files
from infra.errors import SourcesChanged, StageError

NAMED = 3
"""Changed files that an error names."""


@dataclass(frozen=True)
class SourceFile:
    """A file outside the store that a stage reads: its path relative to its root, and the sha256 of its bytes."""

    path: str
    sha256: str


def compare(keyed: Sequence[SourceFile], read: Sequence[SourceFile]) -> None:
    """Raises SourcesChanged, which names the files, where the key was made of others than were read."""
    if sorted((file.path, file.sha256) for file in keyed) == sorted((file.path, file.sha256) for file in read):
        return
    before, after = ({file.path: file.sha256 for file in files} for files in (keyed, read))
    changes = [
        *(f"{path} is new" for path in sorted(after.keys() - before.keys())),
        *(f"{path} is gone" for path in sorted(before.keys() - after.keys())),
        *(f"{path} changed" for path in sorted(after.keys() & before.keys()) if before[path] != after[path]),
    ]
    more = f" and {len(changes) - NAMED} more" if len(changes) > NAMED else ""
    raise SourcesChanged(f"{', '.join(changes[:NAMED])}{more} since the stage's key was made", where="sources")


def snapshot(files: Mapping[str, Path], folder: Path) -> list[SourceFile]:
    """Copy files into `folder` under their names there; each with the digest of what was copied.

    Raises SourcesChanged on one that is gone, StageError on one that cannot be read.
    """
    found = []
    for name, path in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            found.append(SourceFile(name, source_files.copied(path, target)))
        except FileNotFoundError as error:
            raise SourcesChanged(f"{path} is gone since the stage's key was made", where="sources") from error
        except OSError as error:
            raise StageError(f"cannot read {path}: {error.strerror or error}", where="sources") from error
    return found
