"""What enters a key of sources: the relative path and sha256 of each file; of a hub dataset the commit says it all."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from infra import source_files
from infra.errors import StageError, StoreError
from infra.keys import digest
from infra.sources_read import SourceFile
from tasks.data.reading.found_files import FoundFile
from tasks.data.reading.sources import Source
from tasks.stage import identity_params


def hashed(files: Sequence[FoundFile]) -> list[SourceFile]:
    """(path, sha256) of each file. Raises StageError on one that cannot be read."""
    return listed(with_digests(files))


def listed(files: Sequence[FoundFile]) -> list[SourceFile]:
    """Files whose digests are known, as they enter a key.

    Where the sources are read or weighed in different ways, the way is part of the path, so that two files which change
    places between a jsonl and a text source, or a light and a heavy one, are not mistaken for the same data.
    """
    ways = {key: _way(source) for key, source in {id(f.source): f.source for f in files}.items()}
    several = len(set(ways.values())) > 1
    return [SourceFile(f.path + (ways[id(f.source)] if several else ""), f.sha256) for f in files]


def _way(source: Source) -> str:
    return f" ({source.format} source {digest(identity_params(source))[:8]})"


def with_digests(files: Sequence[FoundFile]) -> list[FoundFile]:
    """The files with their digests. Raises StageError on one that cannot be read."""
    try:
        shas = source_files.digests([file.place for file in files])
    except OSError as error:
        broken = next((f for f in files if f.place.location == str(error.filename)), None)
        raise unreadable(broken.path if broken else "files", error) from error
    except StoreError as error:
        raise StageError(error.what, where=error.where or "sources", hint=error.hint) from error
    return [FoundFile(f.place, f.path, f.source, sha) for f, sha in zip(files, shas, strict=True)]


def hub_digests(sources: Sequence[Source]) -> list[SourceFile]:
    """What stands in a key for hub datasets: the commit says all about their content."""
    given = [f"{s.name}/{s.files or _dataset(s)}{s.exclude}{_way(s)}" for s in sources if s.on_hub]
    return [SourceFile(path, hashlib.sha256(path.encode()).hexdigest()) for path in given]


def _dataset(source: Source) -> str:
    return f"{source.dataset}@{source.revision}/{source.config or ''}/{source.split}"


def unreadable(path: str, error: OSError) -> StageError:
    """The error for a listed file that cannot be opened: not the data's fault, so it is never quarantined."""
    return StageError(
        f"cannot read {error.filename or path}: {error.strerror or error}",
        where=f"sources: {path}",
        hint="Fix its permissions, or `exclude` it.",
    )
