"""The local cache of a remote store: verified files, by the digest of the set they belong to.

    $FORGELINE_CACHE/<content digest>/...       default ~/.cache/forgeline
    $FORGELINE_CACHE/.tmp/...                   downloads under way

A file is downloaded beside the cache, hashed, and renamed into place, so what lies in a set was whole when it came. It
is hashed again on every reuse, because disks and people change files; a damaged one is replaced. Two processes that
fetch the same set at once rename the same bytes over each other, which harms nobody, an open file included.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from infra.artifacts import FileEntry
from infra.errors import StoreError
from infra.keys import content_digest
from infra.objects import Objects
from infra.store_errors import NO_HARD_LINKS, NO_SPACE, NOT_ALLOWED, store_errors
from infra.transfer import DamagedFiles, Progress, download, problem, verify


def cache_folder() -> Path:
    """Where fetched files are kept: FORGELINE_CACHE, or `~/.cache/forgeline`."""
    return Path(os.environ.get("FORGELINE_CACHE") or Path.home() / ".cache" / "forgeline").absolute()


def fetch_files(
    objects: Objects,
    prefix: str,
    entries: list[FileEntry],
    on_progress: Callable[[int, int], None] | None = None,
    *,
    partial: bool = False,
) -> Path:
    """A local folder with the files of `entries`, every one verified. Raises DamagedFiles, StoreError.

    partial: `entries` are some of what lies under `prefix`, so the folder may hold others too; else there are none.

    Where the store is a folder itself, its own files are verified in place and that folder is returned: read only.
    Shared files lie elsewhere in it, so a set that has any is put together here, of links where the disk is the same.
    """
    where = f"{objects.url}/{prefix}"
    own = objects.local_folder(prefix)
    if own is not None and not any(entry.shared for entry in entries):
        verify(own, entries, where, partial=partial)
        return own
    cache = cache_folder()
    folder = cache / content_digest((entry.path, entry.sha256) for entry in entries)
    missing = [entry for entry in entries if problem(folder, entry)]
    progress = Progress(sum(entry.size for entry in missing), on_progress)

    def fetch(entry: FileEntry) -> None:
        temporary, target = cache / ".tmp" / uuid.uuid4().hex, folder / entry.path
        try:
            with store_errors(f"{cache} (FORGELINE_CACHE)"):
                temporary.parent.mkdir(parents=True, exist_ok=True)
                target.parent.mkdir(parents=True, exist_ok=True)
            _get(objects, entry.within(prefix), temporary, progress)
            arrived = FileEntry(temporary.name, entry.size, entry.sha256)
            if (fault := problem(temporary.parent, arrived)) is not None:
                raise DamagedFiles([fault.replace(temporary.name, entry.path)], where)
            temporary.replace(target)
        except StoreError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_SPACE | NOT_ALLOWED:
                hint = "Free space there, or set FORGELINE_CACHE to a folder on another disk."
                raise StoreError(error.what, where=f"local cache {cache}", hint=hint) from error
            raise
        finally:
            temporary.unlink(missing_ok=True)

    download(objects, prefix, missing, fetch)
    _remove_strangers(folder, {entry.path for entry in entries})
    if not folder.is_dir():
        raise StoreError("nothing to fetch", where=where)
    return folder


def _get(objects: Objects, path: str, target: Path, progress: Progress) -> None:
    if (own := objects.local_folder(path)) is not None:
        try:
            os.link(own, target)
            return
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
    objects.get_file(path, target, progress.add)


def forget(folder: Path) -> None:
    """Drop a fetched set that will not be read again. A folder store's own files are not a copy, and stay."""
    if folder.is_relative_to(cache_folder()):
        shutil.rmtree(folder, ignore_errors=True)


def _remove_strangers(folder: Path, expected: set[str]) -> None:
    for path in sorted(folder.rglob("*")):
        if not path.is_dir() and path.relative_to(folder).as_posix() not in expected:
            path.unlink(missing_ok=True)
