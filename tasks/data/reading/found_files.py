"""Which files the sources of a dataset name, and where they are now.

A folder is walked, links to folders included; a bucket is listed; an http address is one file. Names are as `files`
gives them below its folder, so they are the same on every machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from infra import source_files
from infra.errors import StageError
from infra.source_files import SourceLocation, is_url
from tasks.data.reading.datasets_door import not_had, prepared_files
from tasks.data.reading.file_patterns import MAGIC, Walked, keeps, split_root, walk
from tasks.data.reading.sources import STDLIB, Source, expand, package_of

NOT_STDLIB = frozenset({"site-packages", "dist-packages", "__pycache__"})
SHOWN = 5
"""Names in a message."""


@dataclass(frozen=True)
class FoundFile:
    """A file of a source: where it is now, and its name in ids, groups and keys (independent of the machine).

    sha256: of its bytes, where that is known without reading it.
    """

    place: SourceLocation
    path: str
    source: Source
    sha256: str = ""
    metadata: Mapping[str, Any] | None = field(default=None, hash=False)
    """Of an image or a sound, what the metadata file beside it says of it (`tasks/data/reading/metadata_files.py`)."""

    @property
    def package(self) -> str:
        """First component of the path below the source's folder, a top-level module without its suffix."""
        return package_of(self.path, self.source)


def find_files(sources: Sequence[Source]) -> list[FoundFile]:
    """Every file outside the store that the sources name, sorted by path; hub datasets are looked at by no plan.

    Raises StageError on an unreadable place, a fileless source, a link that leads nowhere, and a file whose suffix says
    that it is of another format.
    """
    found: dict[str, FoundFile] = {}
    for i, source in enumerate(sources):
        if not source.on_hub and source.stage is None:
            _add(found, _files_of(source, f"sources[{i}].{source.field}"), i)
    return [found[path] for path in sorted(found)]


def links_not_followed(sources: Sequence[Source]) -> list[str]:
    """A sentence for each source with links that were not followed, though there may be data behind them."""
    said = []
    for i, source in enumerate(sources):
        given = expand(source.files or source.python_functions or source.saved or "")
        if source.on_hub or source.stage is not None or is_url(given):
            continue
        if links := _walked(source, given).not_entered:
            said.append(f"sources[{i}]: links to folders that were not followed: {_described(links)}")
    return said


def _described(links: Mapping[str, str]) -> str:
    shown = ", ".join(f"{_text(path)} -> {_text(to)}" for path, to in sorted(links.items())[:SHOWN])
    return f"{len(links)} ({shown}{', ...' if len(links) > SHOWN else ''})"


def _refuse_broken(walked: Walked, where: str) -> None:
    if walked.broken:
        raise StageError(
            f"links that lead nowhere: {_described(walked.broken)}",
            where=where,
            hint="What they stood for would be missing. Mend or remove them, or `exclude` them.",
        )


def _add(found: dict[str, FoundFile], files: list[FoundFile], number: int) -> None:
    for file in files:
        other = found.setdefault(file.path, file)
        if other.place.location != file.place.location:
            raise StageError(
                f"two sources hold a file named {file.path} ({other.place.location} and {file.place.location})",
                where=f"sources[{number}]",
                hint="Give one of the sources a `name:`; it becomes the prefix of its files.",
            )
        if other.source != file.source:
            raise StageError(
                f"{file.path} is read by two sources", where=f"sources[{number}]", hint="`exclude` it from one of them."
            )


def _files_of(source: Source, where: str) -> list[FoundFile]:
    given = expand(source.files or source.python_functions or source.saved or "")
    if is_url(given):
        return _remote_files(source, given, where)
    root, pattern = _place(source, given)
    try:
        walked = _walked(source, given)
        places = [source_files.local(root / path) for path in walked.files]
    except OSError as error:
        raise StageError(
            f"cannot read {_text(str(error.filename or root))}: {error.strerror or error}",
            where=where,
            hint="Check the path (relative paths start at the pipeline file's folder) and its permissions.",
        ) from error
    _refuse_broken(walked, where)
    hint = f"That is a folder: write {given.rstrip('/')}/*." if Path(given).is_dir() and source.files else ""
    if source.saved:
        splits = sorted(str(file.parent) for file in root.glob("*/dataset_info.json"))
        hint = f"It holds several splits: write {' or '.join(splits)}." if splits else "Did `save_to_disk` write it?"
    return _named(source, list(zip(walked.files, places, strict=True)), f"{pattern} under {root}", where, hint)


def _place(source: Source, given: str) -> tuple[Path, str]:
    if source.saved:
        return Path(given), "data-*.arrow"
    return split_root(given) if source.files else (Path(given), "**/*.py")


def _walked(source: Source, given: str) -> Walked:
    # The standard library's folder holds what pip installs as well; that is not the standard library.
    of_stdlib = (source.files or source.python_functions or source.saved or "").startswith(STDLIB)
    root, pattern = _place(source, given)
    return walk(root, pattern, source.exclude, NOT_STDLIB if of_stdlib else frozenset({"__pycache__"}))


def _remote_files(source: Source, url: str, where: str) -> list[FoundFile]:
    parts = urlsplit(url)
    if parts.scheme in ("http", "https") and not set("*[").intersection(parts.path):
        name = PurePosixPath(parts.path).name or parts.netloc
        return _named(source, [(name, source_files.single(url))], url, where)
    scheme, _, rest = url.partition("://")
    base = split_root(rest, lambda name: False)[0]
    listed = source_files.listed(f"{scheme}://{base.as_posix()}")
    names = {parent for path, _ in listed for parent in (path, *map(str, PurePosixPath(path).parents))}
    folder, pattern = split_root(rest, lambda name: str(PurePosixPath(name).relative_to(base)) in names)
    below = "" if folder == base else f"{folder.relative_to(base).as_posix()}/"
    inside = [(path.removeprefix(below), file) for path, file in listed if path.startswith(below)]
    files = [(path, file) for path, file in inside if keeps(path, pattern, source.exclude)]
    is_folder = not MAGIC.search(rest) and any(path.startswith(f"{PurePosixPath(rest).name}/") for path, _ in listed)
    hint = f"That is a folder: write {url.rstrip('/')}/*." if is_folder else ""
    return _named(source, files, f"{pattern} under {scheme}://{folder.as_posix()}", where, hint)


def _named(
    source: Source, files: list[tuple[str, SourceLocation]], what: str, where: str, hint: str = ""
) -> list[FoundFile]:
    if not files:
        excluded = f" after exclude {source.exclude}" if source.exclude else ""
        hint = hint or "`**/` matches any depth of folders."
        raise StageError(f"no file matches {what}{excluded}", where=where, hint=hint)
    for path, _ in files:
        if wrong := source.contradiction(path):
            raise StageError(
                f"{_text(path)}: {wrong}",
                where=where,
                hint="`exclude` it, or give it a source of its own with its format.",
            )
    prefix = f"{source.name}/" if source.name else ""
    return [FoundFile(place, prefix + _text(path), source) for path, place in files]


def _text(path: str) -> str:
    r"""A file's name as text that every file can hold: bytes that are no UTF-8 are spelt \xe9."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def hub_files(source: Source, where: str) -> list[FoundFile]:
    """The files of a hub dataset, downloaded unless the local cache has them. Raises StageError where neither works."""
    if source.dataset is not None:
        return _named(source, prepared_files(source, where), f"split {source.split} in {source.dataset}", where)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    assert source.hub is not None
    name, revision, pattern = source.hub.group("name", "revision", "pattern")
    try:
        root = Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=[pattern]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise not_had(name, revision, error, where) from error
    # The cache holds links to files that are named by their content.
    walked = walk(root, pattern, source.exclude)
    _refuse_broken(walked, where)
    files = [(path, source_files.local((root / path).resolve())) for path in walked.files]
    return _named(source, files, f"{pattern} in {name}", where)
