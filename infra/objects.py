"""Named objects in a folder or a bucket: the few operations everything else in the store is built from.

Promises, held by one conformance test over both kinds:
- `create` is create-only and atomic; a write that succeeded but whose answer was lost still returns True.
- An object is never seen half-written. `write_bytes` replaces whole objects (heartbeats and run records only).
- What was created is read by every later call. Listings are hints for people and for finding where to look; whether
  something is complete is decided by reading it.

Paths are POSIX, relative, and cannot leave the store. `FileNotFoundError` means the object is not there; every other
failure is a `StoreError` with a hint. Objects may be used from many threads and after a fork.
"""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from infra.errors import StoreError
from infra.json_values import parse_json
from infra.relative_path import safe_relative_path

T = TypeVar("T")
OnBytes = Callable[[int], None]
"""Called with the number of bytes that were just moved; from any thread."""


def checked(path: str) -> str:
    """A path as the store accepts it: relative, inside, normal form. Raises StoreError."""
    safe_relative_path(path)
    if any(part in ("", ".") for part in path.split("/")):
        raise StoreError(f"path {path!r} is not in normal form", hint="No empty or '.' parts, no slash at the end.")
    return path


@dataclass(frozen=True)
class Stored:
    """An object as a listing shows it: `size` in bytes, `modified` in seconds since 1970 by the store's clock."""

    path: str
    size: int
    modified: float


class Objects(ABC):
    """Objects by path. `url` opens the same ones again from any process and working directory."""

    url: str

    @abstractmethod
    def check(self) -> None:
        """Raise StoreError or StoreUnreachable unless reading works: address, credentials, bucket, permissions."""

    def probe(self) -> None:
        """Raise StoreError unless objects can be written, and a second create of a path is refused."""
        path = f".probe/{uuid.uuid4().hex}"
        first = self.create(path, b"first")
        try:
            second = self.create(path, b"second")
            if not first or second or self.read_bytes(path) != b"first":
                raise StoreError(
                    "the server ignores create-only writes (If-None-Match: *)",
                    where=self.url,
                    hint="Two runs could overwrite each other here. Use AWS S3, SeaweedFS, MinIO, Ceph, or a folder.",
                )
        finally:
            self.delete(path)

    glances: tuple[float, ...] = ()
    """Seconds to wait before each further reading of what looks damaged: a server may answer wrongly for a moment."""
    doubts: tuple[float, ...] = ()
    """The same before something is set aside as damaged; longer, because that moves and deletes."""

    @abstractmethod
    def read_bytes(self, path: str) -> bytes:
        """The whole object. Raises FileNotFoundError. For small objects; payloads move through `get_file`."""

    def read_json(self, path: str) -> Any:
        """The object as JSON. Raises FileNotFoundError, or StoreError where it is not JSON, also when read again."""
        try:
            return self.again(lambda: parse_json(self.read_bytes(path)), ValueError, self.glances)
        except ValueError as error:
            raise StoreError(f"not valid JSON ({error})", where=f"{self.url}/{path}") from error

    def again(self, look: Callable[[], T], damage: type[Exception], pauses: tuple[float, ...]) -> T:
        """What `look` returns; while it raises `damage`, after each of the pauses again."""
        for pause in pauses:
            try:
                return look()
            except damage:
                time.sleep(pause)
        return look()

    def find_json(self, path: str) -> Any | None:
        """The object as JSON, or None if it is not there."""
        try:
            return self.read_json(path)
        except FileNotFoundError:
            return None

    @abstractmethod
    def write_bytes(self, path: str, data: bytes) -> None:
        """Create or replace an object. Not for anything that two writers could want: use `create`."""

    def write_json(self, path: str, value: Any) -> None:
        """Create or replace a JSON object (see `write_bytes`)."""
        self.write_bytes(path, json_bytes(value))

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Create an object that must not exist. True if this call made it, False if it was there; atomic."""

    @abstractmethod
    def copy(self, path: str, target: str) -> None:
        """Copy an object within the store, without its bytes passing through here. Raises FileNotFoundError."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether the object (not a folder) is there."""

    @abstractmethod
    def list(self, prefix: str) -> list[str]:
        """Sorted names directly under folder `prefix`: objects and sub-folders, perhaps also one just emptied."""

    @abstractmethod
    def walk(self, prefix: str) -> Iterator[str]:
        """Store paths of every object below the folder `prefix`, sorted."""

    @abstractmethod
    def entries(self, prefix: str) -> Iterator[Stored]:
        """As `walk`, with the size and age of every object; what is removed meanwhile may be left out."""

    @abstractmethod
    def modified(self, path: str) -> float:
        """When the object was last written, by the store's clock. Raises FileNotFoundError."""

    def now(self) -> float:
        """What time it is by the store's clock, which `modified` can be compared with. Writes an object to ask."""
        path = f".probe/{uuid.uuid4().hex}"
        self.write_bytes(path, b"")
        try:
            return self.modified(path)
        finally:
            self.delete(path)

    @abstractmethod
    def unfinished(self, *, remove: bool) -> Sequence[str]:
        """What writers that are surely dead left half-written: unseen by all else here, and a day old or more."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove an object; no error if it is not there."""

    @abstractmethod
    def delete_tree(self, prefix: str) -> None:
        """Remove every object below the folder `prefix`. Not atomic: remove what makes it visible first."""

    @abstractmethod
    def put_file(self, source: Path, path: str, on_bytes: OnBytes | None = None) -> tuple[int, str]:
        """Stream a local file into an object; returns (size in bytes, sha256 hex) of what was stored."""

    @abstractmethod
    def get_file(self, path: str, target: Path, on_bytes: OnBytes | None = None) -> None:
        """Stream an object into a local file, in constant memory. Raises FileNotFoundError."""

    def local_folder(self, prefix: str) -> Path | None:
        """The folder behind `prefix` where the store is a folder itself, so that nothing need be copied; else None."""
        return None


def json_bytes(value: Any) -> bytes:
    """JSON as it is stored: sorted, indented for people, and refusing NaN, which JSON does not have."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n").encode()
