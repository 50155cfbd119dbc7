"""Folders to objects and back: hashed, streamed, many files at once, in constant memory.

Small files move eight at a time; a large one moves alone, because it is split into parallel parts already. So at most
about 64 MiB are in flight, whatever is transferred.
"""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from infra.artifacts import FileEntry
from infra.errors import StoreError
from infra.keys import file_digest
from infra.objects import Objects, checked
from infra.store_errors import store_errors

LARGE = 8 << 20
THREADS = 8
OnProgress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), from one thread at a time."""

T = TypeVar("T")
R = TypeVar("R")


class DamagedFiles(StoreError):
    """Stored bytes differ from the manifest that describes them; `problems` has one line for each file."""

    def __init__(self, problems: list[str], where: str) -> None:
        self.problems = problems
        super().__init__("; ".join(problems[:5]) + ("; ..." if len(problems) > 5 else ""), where=where)


class Progress:
    """Adds up the bytes that parallel transfers report."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self.done, self.total, self._report, self._lock = 0, total, on_progress, threading.Lock()

    def add(self, count: int) -> None:
        if self._report is None:
            return
        with self._lock:
            # A retried part is counted twice; a bar past its end would look broken.
            self.done = min(self.done + count, self.total)
            self._report(self.done, self.total)


def folder_files(folder: Path) -> list[tuple[str, Path, int]]:
    """(relative POSIX path, file, size) of every file below a folder, sorted.

    Raises StoreError on symlinks, devices and names a store cannot hold: an artifact is plain files, so that it means
    the same wherever it is fetched.
    """
    found: list[tuple[str, Path, int]] = []
    for path in sorted(folder.rglob("*")):
        info = path.lstat()
        name = path.relative_to(folder).as_posix()
        if stat.S_ISREG(info.st_mode):
            found.append((checked(name), path, info.st_size))
        elif not stat.S_ISDIR(info.st_mode):
            raise StoreError(
                f"{name!r} is a link or special file",
                where=str(folder),
                hint="An artifact holds plain files only; copy the target into the folder.",
            )
    return found


def upload(objects: Objects, prefix: str, folder: Path, progress: Progress) -> list[FileEntry]:
    """Store every file of `folder` under `prefix`; returns their entries, sorted by path."""
    return upload_files(objects, prefix, folder_files(folder) if folder.is_dir() else [], progress)


def upload_files(
    objects: Objects, prefix: str, files: list[tuple[str, Path, int]], progress: Progress
) -> list[FileEntry]:
    """Store files given as (name, path, size in bytes) under `prefix`; returns their entries, sorted by path."""

    def send(item: tuple[str, Path, int]) -> FileEntry:
        name, path, _ = item
        try:
            size, sha = objects.put_file(path, f"{prefix}/{name}", progress.add)
        except FileNotFoundError as error:
            raise StoreError("a file disappeared while it was stored", where=str(path)) from error
        return FileEntry(name, size, sha)

    return sorted(in_parallel(send, files, lambda item: item[2] >= LARGE), key=lambda entry: entry.path)


def verify(folder: Path, entries: list[FileEntry], where: str, *, partial: bool = False) -> None:
    """Raise DamagedFiles unless `folder` has the files of `entries`, byte for byte, and no others unless `partial`."""
    problems = [p for p in in_parallel(lambda e: problem(folder, e), entries, lambda e: e.size >= LARGE) if p]
    expected = {entry.path for entry in entries}
    if folder.is_dir() and not partial:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if not path.is_dir() and name not in expected:
                problems.append(f"{name}: not in the manifest")
    if problems:
        raise DamagedFiles(problems, where)


def problem(folder: Path, entry: FileEntry) -> str | None:
    """What is wrong with one file of a folder, or None."""
    path = folder / entry.path
    try:
        info = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return f"{entry.path}: missing"
    if not stat.S_ISREG(info.st_mode):
        return f"{entry.path}: not a plain file"
    if info.st_size != entry.size:
        return f"{entry.path}: {info.st_size} bytes, expected {entry.size}"
    with store_errors(str(path)):
        return None if file_digest(path) == entry.sha256 else f"{entry.path}: sha256 differs"


def in_parallel(work: Callable[[T], R], items: Iterable[T], large: Callable[[T], bool]) -> list[R]:
    """Results of `work`, small items in threads, large ones one by one; the first failure stops the rest."""
    items = list(items)
    small = [item for item in items if not large(item)]
    results: list[R] = []
    if len(small) > 1:
        with ThreadPoolExecutor(THREADS, thread_name_prefix="transfer") as pool:
            try:
                results += pool.map(work, small)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    else:
        results += map(work, small)
    results += [work(item) for item in items if large(item)]
    return results


def download(objects: Objects, prefix: str, entries: list[FileEntry], fetch: Callable[[FileEntry], None]) -> None:
    """Run `fetch` for every entry, in parallel as above; a missing object is DamagedFiles."""

    def one(entry: FileEntry) -> None:
        try:
            fetch(entry)
        except FileNotFoundError as error:
            raise DamagedFiles([f"{entry.path}: missing"], f"{objects.url}/{prefix}") from error

    in_parallel(one, entries, lambda entry: entry.size >= LARGE)
