"""Files outside the store, which a pipeline reads: local paths, and URLs of any file system that fsspec knows.

    files = listed("s3://bucket/raw")             # every file below, with its size and what shows a change
    digests(files)                                # sha256 of each; those that did not change are not read again
    with local_copy(files[0].location) as path:   # the file itself, or a download that is removed afterwards

A digest is remembered by (location, size, stamp) in `$FORGELINE_CACHE/digests.sqlite`. The stamp is what changes with
the bytes: modification and change time in nanoseconds of a local file, the ETag of an object. A local file changed in
the last seconds is not remembered, because it could change once more within its clock's resolution. What is remembered
is a shortcut: `--verify` (FORGELINE_VERIFY_SOURCES=1) reads everything.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from infra.cache import cache_folder
from infra.errors import StoreError
from infra.keys import CHUNK, file_digest
from infra.store_errors import bucket_hint, store_errors

SETTLED_NS = 3_000_000_000
"""Age of a local file's last change from which on its digest is remembered."""
STAMPS = ("ETag", "etag", "md5Hash", "generation", "blob_id", "LastModified", "mtime", "created")
READERS = 8
ONE_PLACE = ("s3", "http", "https")
"""Protocols whose URLs are never a chain of several."""


@dataclass(frozen=True)
class SourceLocation:
    """A file somewhere: path or URL, bytes, and its stamp ("" where the file system has none)."""

    location: str
    size: int
    stamp: str


def is_url(location: str) -> bool:
    return "://" in location


def local(path: Path) -> SourceLocation:
    """A local file. Raises OSError."""
    info = path.stat()
    return SourceLocation(str(path.absolute()), info.st_size, f"{info.st_mtime_ns}-{info.st_ctime_ns}")


def listed(root: str) -> list[tuple[str, SourceLocation]]:
    """(path relative to `root`, file) of every object below a URL, sorted; markers of empty folders are none.

    Raises StoreError where the place cannot be read.
    """
    with _source_errors(root):
        system, folder = _system(root)
        folder = folder.rstrip("/")
        found: dict[str, dict[str, Any]] = system.find(folder, detail=True)
    files = []
    for name, info in found.items():
        path = name.removeprefix(folder).lstrip("/")
        if path and not path.endswith("/") and info.get("type") == "file":
            files.append((path, _location(system.unstrip_protocol(name), info)))
    return sorted(files, key=lambda item: item[0])


def single(url: str) -> SourceLocation:
    """The one file at a URL. Raises StoreError where there is none, or it cannot be reached."""
    with _source_errors(url):
        system, path = _system(url)
        return _location(url, system.info(path))


def _location(url: str, info: dict[str, Any]) -> SourceLocation:
    stamp = next((str(info[key]) for key in STAMPS if info.get(key) is not None), "")
    return SourceLocation(url, int(info.get("size") or 0), stamp)


@contextlib.contextmanager
def _source_errors(url: str) -> Iterator[None]:
    """`store_errors` for a place that is read and no store."""
    try:
        with store_errors(url):
            yield
    except FileNotFoundError as error:
        raise StoreError("there is nothing of this name", where=url, hint=_look_at(url)) from error
    except ImportError as error:
        raise StoreError(f"this kind of place needs a package: {error}", where=url) from error
    except StoreError as error:
        if not url.startswith("s3://"):
            error.hint = _look_at(url)
        raise


def _look_at(url: str) -> str:
    return bucket_hint() if url.startswith("s3://") else "Check the address and the network."


def digests(files: Sequence[SourceLocation]) -> list[str]:
    """sha256 of each file. Raises OSError on a local file that cannot be read, StoreError on a remote one."""
    verify = os.environ.get("FORGELINE_VERIFY_SOURCES", "0") not in ("", "0")
    with _remembered() as database:
        known = {} if verify or database is None else _known(database, files)
        missing = [file for file in files if file not in known]
        with ThreadPoolExecutor(READERS, thread_name_prefix="hash") as pool:
            new = dict(zip(missing, pool.map(_digest, missing), strict=True))
        if database is not None:
            lasting = [
                (f.location, f.size, f.stamp, sha) for f, sha in new.items() if settled(f) and _is_text(f.location)
            ]
            with contextlib.suppress(sqlite3.Error), database:
                database.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?)", lasting)
    return [known.get(file) or new[file] for file in files]


def copied(source: Path, target: Path) -> str:
    """Copy a local file; returns the sha256 of what was copied. Raises OSError."""
    sha = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(CHUNK):
            sha.update(chunk)
            writer.write(chunk)
    return sha.hexdigest()


@contextlib.contextmanager
def local_copy(location: str, scratch: Path, *, always: bool = False) -> Iterator[Path]:
    """The local file itself, or a download in `scratch` that is removed afterwards. always: copy local files, too."""
    if not is_url(location) and not always:
        yield Path(location)
        return
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        # The end of the name says whether it is compressed; a key may be longer than a file's name may.
        target = Path(folder) / PurePosixPath(_path_of(location)).name[-100:]
        if not is_url(location):
            copied(Path(location), target)
            yield target
            return
        with _source_errors(location), _open(location) as reader, target.open("wb") as writer:
            shutil.copyfileobj(reader, writer, CHUNK)
        yield target


def _digest(file: SourceLocation) -> str:
    if not is_url(file.location):
        return file_digest(Path(file.location))
    sha = hashlib.sha256()
    with _source_errors(file.location), _open(file.location) as stream:
        while chunk := stream.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def _system(url: str) -> tuple[Any, str]:
    import fsspec

    protocol = url.partition("://")[0]
    options = {"use_listings_cache": False} if protocol == "s3" else {}
    if protocol in ONE_PLACE:
        # url_to_fs would take `::` in a key for the beginning of another URL.
        kind: Any = fsspec.get_filesystem_class(protocol)
        return kind(**kind._get_kwargs_from_urls(url), **options), kind._strip_protocol(url)
    found: tuple[Any, str] = fsspec.core.url_to_fs(url, **options)
    return found


def _path_of(url: str) -> str:
    """The URL without what may follow the path of a web address."""
    return urlsplit(url).path if url.startswith(("http://", "https://")) else url


def _open(url: str) -> IO[bytes]:
    system, path = _system(url)
    stream: IO[bytes] = system.open(path, "rb")
    return stream


def settled(file: SourceLocation) -> bool:
    """Whether the next change of the file shows in its stamp."""
    if is_url(file.location):
        return bool(file.stamp)
    return time.time_ns() - max(int(part) for part in file.stamp.split("-")) > SETTLED_NS


@contextlib.contextmanager
def _remembered() -> Iterator[sqlite3.Connection | None]:
    """The table of remembered digests; None where it cannot be opened, which costs time and nothing else."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(folder / "digests.sqlite", timeout=10)
        database.execute(
            "CREATE TABLE IF NOT EXISTS digests "
            "(location TEXT, size INTEGER, stamp TEXT, sha256 TEXT, PRIMARY KEY (location))"
        )
    except (OSError, sqlite3.Error):
        yield None
        return
    with contextlib.closing(database):
        yield database


def _is_text(location: str) -> bool:
    """Whether a database can hold it: the name of a file may have bytes that are no UTF-8."""
    return location.isascii() or not any("\ud800" <= char <= "\udfff" for char in location)


def _known(database: sqlite3.Connection, files: Sequence[SourceLocation]) -> dict[SourceLocation, str]:
    found = {}
    with contextlib.suppress(sqlite3.Error):
        for file in filter(lambda file: _is_text(file.location), files):
            query = "SELECT sha256 FROM digests WHERE location = ? AND size = ? AND stamp = ?"
            row = database.execute(query, (file.location, file.size, file.stamp)).fetchone()
            if row is not None and file.stamp:
                found[file] = str(row[0])
    return found
