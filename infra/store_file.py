"""The store in a folder: a temporary file, then a link or rename, so that an object is there whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from infra.errors import StoreError, StoreUnreachable
from infra.keys import CHUNK
from infra.objects import OnBytes, Stored, checked
from infra.patience import patient
from infra.store import Store
from infra.store_errors import NO_HARD_LINKS, store_errors

STALE_SECONDS = 24 * 3600
"""Age at which a temporary file can only be the rest of a killed process."""


class FileStore(Store):
    """A folder. Several processes, and machines sharing a POSIX file system with hard links, may use it at once."""

    doubts = (0.1, 0.4)

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.url = self.root.as_uri()
        self._temporary = self.root / ".tmp"
        self._seen = False

    @patient
    def check(self) -> None:
        with store_errors(str(self.root)):
            if self.patience.seconds and not self.root.exists():
                raise self._gone()  # who opens it with patience knows that it is somewhere
            if self.root.exists() and not self.root.is_dir():
                raise StoreError("is not a folder", where=str(self.root), hint="Name a folder for the store.")
            if self.root.is_dir():
                next(self.root.iterdir(), None)

    def probe(self) -> None:
        super().probe()
        self.unfinished(remove=True)

    def _path(self, path: str) -> Path:
        """Raises StoreUnreachable where the whole folder was there and is gone: its disk is away."""
        if self._temporary.is_dir():
            self._seen = True
        elif self._seen:
            raise self._gone()
        return self.root / checked(path)

    def _gone(self) -> StoreUnreachable:
        return StoreUnreachable("the folder of the store is gone", where=str(self.root), hint="Is its disk mounted?")

    @patient
    def read_bytes(self, path: str) -> bytes:
        with store_errors(str(self.root / path)):
            return self._path(path).read_bytes()

    @patient
    def write_bytes(self, path: str, data: bytes) -> None:
        target = self._path(path)
        with store_errors(str(target)), self._temp_file() as temporary:
            temporary.write_bytes(data)
            self._into_place(lambda: temporary.replace(target), target)

    def create(self, path: str, data: bytes) -> bool:
        temporary, written = self._temporary / uuid.uuid4().hex, False

        def once() -> bool:
            nonlocal written
            target = self._path(path)
            with store_errors(str(target)):
                if not written:  # later it may be the target's own file
                    temporary.parent.mkdir(parents=True, exist_ok=True)
                    with temporary.open("wb") as stream:
                        stream.write(data)
                        stream.flush()
                        os.fsync(stream.fileno())
                    written = True
                return self._link(temporary, target)

        try:
            return self.patience.call(once)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def _link(self, temporary: Path, target: Path) -> bool:
        try:
            self._into_place(lambda: os.link(temporary, target), target)
        except FileExistsError:
            # NFS may repeat a link whose answer was lost; then the second link to our file is the proof.
            return temporary.stat().st_nlink > 1
        except OSError as error:
            if error.errno in NO_HARD_LINKS and os.access(target.parent, os.W_OK):
                raise StoreError(
                    f"the file system has no hard links ({error.strerror})",
                    where=str(self.root),
                    hint="Put the store on a local disk, NFS, or S3.",
                ) from error
            raise
        _sync_folder(target.parent)
        return True

    @patient
    def copy(self, path: str, target: str) -> None:
        place = self._path(target)
        with store_errors(str(self.root / path)), self._temp_file() as temporary:
            shutil.copyfile(self._path(path), temporary)
            self._into_place(lambda: temporary.replace(place), place)
            _sync_folder(place.parent)

    @patient
    def exists(self, path: str) -> bool:
        with store_errors(str(self.root / path)):
            return self._path(path).is_file()

    @patient
    def list(self, prefix: str) -> list[str]:
        folder = self._path(prefix)
        with store_errors(str(folder)):
            try:
                return sorted(entry.name for entry in folder.iterdir())
            except (FileNotFoundError, NotADirectoryError):
                return []

    def walk(self, prefix: str) -> Iterator[str]:
        yield from self._walk(prefix)

    @patient
    def _walk(self, prefix: str) -> Sequence[str]:
        folder = self._path(prefix)
        with store_errors(str(folder)):
            found = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def entries(self, prefix: str) -> Iterator[Stored]:
        for path in self.walk(prefix):
            with contextlib.suppress(FileNotFoundError):
                info = self._stat(path)
                yield Stored(path, info.st_size, info.st_mtime)

    @patient
    def _stat(self, path: str) -> os.stat_result:
        with store_errors(str(self.root / path)):
            return self._path(path).stat()

    def modified(self, path: str) -> float:
        return self._stat(path).st_mtime

    @patient
    def delete(self, path: str) -> None:
        target = self._path(path)
        with store_errors(str(target)):
            with contextlib.suppress(FileNotFoundError):
                target.unlink()
            self._prune(target.parent)

    @patient
    def delete_tree(self, prefix: str) -> None:
        folder = self._path(prefix)
        with store_errors(str(folder)):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(folder)
            self._prune(folder.parent)

    @patient
    def put_file(self, source: Path, path: str, on_bytes: OnBytes | None = None) -> tuple[int, str]:
        target, sha, size = self._path(path), hashlib.sha256(), 0
        with store_errors(str(target)), self._temp_file() as temporary:
            # An open file of this process is named by a link that only the kernel can make.
            follow = source.parent == Path("/proc/self/fd")
            descriptor = os.open(source, os.O_RDONLY | (0 if follow else getattr(os, "O_NOFOLLOW", 0)))
            with os.fdopen(descriptor, "rb", buffering=0) as reader, temporary.open("wb", buffering=0) as writer:
                buffer = memoryview(bytearray(CHUNK))
                while count := reader.readinto(buffer):
                    chunk = buffer[:count]
                    sha.update(chunk)
                    while len(chunk):
                        chunk = chunk[writer.write(chunk) :]
                    size += count
                    if on_bytes:
                        on_bytes(count)
                os.fsync(writer.fileno())
            self._into_place(lambda: temporary.replace(target), target)
            _sync_folder(target.parent)
        return size, sha.hexdigest()

    @patient
    def get_file(self, path: str, target: Path, on_bytes: OnBytes | None = None) -> None:
        with store_errors(str(self.root / path)), self._path(path).open("rb") as reader, target.open("wb") as writer:
            while chunk := reader.read(CHUNK):
                writer.write(chunk)
                if on_bytes:
                    on_bytes(len(chunk))

    def local_folder(self, prefix: str) -> Path | None:
        return self._path(prefix)

    @contextlib.contextmanager
    def _temp_file(self) -> Iterator[Path]:
        path = self._temporary / uuid.uuid4().hex
        self._temporary.mkdir(parents=True, exist_ok=True)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _into_place(self, move: Callable[[], object], target: Path) -> None:
        for attempt in range(5):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                move()
                return
            except FileNotFoundError:
                # Another process may have pruned the folder, empty until now, between the two calls.
                if attempt == 4:
                    raise

    def _prune(self, folder: Path) -> None:
        while folder != self.root:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent

    def unfinished(self, *, remove: bool) -> Sequence[str]:
        oldest, found = time.time() - STALE_SECONDS, []
        for path in self._temporary.iterdir() if self._temporary.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    found.append(f".tmp/{path.name}")
                    if remove:
                        path.unlink()
        return found


def _sync_folder(folder: Path) -> None:
    """Make a new name survive a power cut, not only a kill."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
