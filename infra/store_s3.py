"""The store in an S3 bucket, through s3fs.

Credentials and endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN,
AWS_ENDPOINT_URL, AWS_REGION). Settings that matter:

- No listings cache: another process's objects must be seen.
- botocore and s3fs each retry, and retries multiply: two each, and an outer deadline on every call. An outage is
  outlived by `infra/patience.py`, which knows of all calls together.
- `Expect: 100-continue` is switched off: while botocore waits for the interim answer, no read timeout applies.
- A filesystem object does not survive a fork (its event loop's thread is gone), so each process makes its own.
- `create` marks the object with a writer token. A PUT that won but whose answer was lost is retried and answered 412;
  the token distinguishes that from a lost race.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from infra.errors import StoreError, StoreUnreachable
from infra.keys import file_digest
from infra.objects import OnBytes, Stored, checked
from infra.store import Store
from infra.store_errors import bucket_hint, status_of, store_errors

CONNECT_TIMEOUT = 3.0
READ_TIMEOUT = 15.0
CHECK_DEADLINE = 8.0
CALL_DEADLINE = 45.0
SLOWEST_BYTES_PER_SECOND = 256 * 1024
"""A transfer slower than this on average is given up as stalled."""
STALE = timedelta(days=1)
PART = 8 << 20
PARTS_IN_FLIGHT = 4
TOKEN = "forgeline-writer"  # noqa: S105 - the name of a metadata field


class S3Store(Store):
    """A bucket and a prefix."""

    glances = (0.5, 1.5)
    doubts = (1.0, 3.0, 6.0)

    def __init__(self, bucket: str, prefix: str) -> None:
        self._bucket = bucket
        self._base = f"{prefix}/" if prefix else ""
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._lock = threading.Lock()
        self._by_process: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"bucket": self._bucket, "prefix": self._base.rstrip("/")}

    def __setstate__(self, state: dict[str, str]) -> None:
        self.__init__(state["bucket"], state["prefix"])  # type: ignore[misc]

    def _filesystem(self) -> Any:
        if (filesystem := self._by_process.get(os.getpid())) is not None:
            return filesystem
        import botocore.handlers
        import s3fs

        filesystem = s3fs.S3FileSystem(
            skip_instance_cache=True,
            use_listings_cache=False,
            max_concurrency=PARTS_IN_FLIGHT,
            config_kwargs={
                "connect_timeout": CONNECT_TIMEOUT,
                "read_timeout": READ_TIMEOUT,
                "retries": {"total_max_attempts": 2, "mode": "standard"},
                "max_pool_connections": 16,
            },
        )
        filesystem.retries = 2
        filesystem.s3.meta.events.unregister("before-call.s3", botocore.handlers.add_expect_header)
        # The parent's filesystem stays referenced: dropping it here would run its clean-up on a loop that is gone.
        return self._by_process.setdefault(os.getpid(), filesystem)

    def _call(
        self, path: str, method: str, *args: Any, deadline: float = CALL_DEADLINE, where: str = "", **kwargs: Any
    ) -> Any:
        from fsspec.asyn import sync

        def once() -> Any:
            with store_errors(where or f"{self.url}/{path}".rstrip("/")):
                filesystem = self._filesystem()
                return sync(filesystem.loop, getattr(filesystem, method), *args, timeout=deadline, **kwargs)

        # Every request may be made twice: a create has its token, all others say what is to be, not what to change.
        return self.patience.call(once)

    def _name(self, path: str) -> str:
        return f"{self._bucket}/{self._base}{checked(path)}"

    def _key(self, path: str) -> dict[str, Any]:
        return {"Bucket": self._bucket, "Key": self._base + checked(path)}

    def check(self) -> None:
        try:
            self._call(
                "",
                "_call_s3",
                "list_objects_v2",
                Bucket=self._bucket,
                Prefix=self._base,
                MaxKeys=1,
                deadline=CHECK_DEADLINE,
            )
        except FileNotFoundError as error:
            # An answer about an object, where a bucket was asked for: another path than that of the bucket.
            raise StoreError("the server knows no such bucket", where=self.url, hint=bucket_hint()) from error

    def probe(self) -> None:
        super().probe()
        self.unfinished(remove=True)

    def unfinished(self, *, remove: bool) -> Sequence[str]:
        # A process killed in an upload leaves its parts, unseen and paid for. By age: a younger one may be alive.
        request: dict[str, Any] = {"Bucket": self._bucket, "Prefix": self._base}
        oldest, found = datetime.now(UTC) - STALE, []
        for entry in self._call("", "_call_s3", "list_multipart_uploads", **request).get("Uploads", []):
            if entry["Initiated"] < oldest:
                found.append(entry["Key"][len(self._base) :])
                if remove:
                    request = {"Bucket": self._bucket, "Key": entry["Key"], "UploadId": entry["UploadId"]}
                    self._call("", "_call_s3", "abort_multipart_upload", **request)
        return found

    def read_bytes(self, path: str) -> bytes:
        # max_concurrency=1: one GET, instead of a HEAD for the size first.
        return bytes(self._call(path, "_cat_file", self._name(path), max_concurrency=1))

    def write_bytes(self, path: str, data: bytes) -> None:
        self._call(path, "_pipe_file", self._name(path), data)

    def create(self, path: str, data: bytes) -> bool:
        token = uuid.uuid4().hex
        request: dict[str, Any] = {**self._key(path), "Body": data, "IfNoneMatch": "*", "Metadata": {TOKEN: token}}
        for wait in (0.05, 0.2, 0.8, None):
            try:
                self._call(path, "_call_s3", "put_object", **request)
                return True
            except StoreError as error:
                status = status_of(error.__cause__ or error)
                if status == 412:
                    return self._token(path) == token
                # AWS answers 409 while another conditional write of the same key is under way.
                if status != 409 or wait is None:
                    raise
                time.sleep(wait)
        raise AssertionError("unreachable")

    def _token(self, path: str) -> str | None:
        try:
            head = self._call(path, "_call_s3", "head_object", **self._key(path))
        except FileNotFoundError:
            return None
        token: str | None = head.get("Metadata", {}).get(TOKEN)
        return token

    def copy(self, path: str, target: str) -> None:
        self._call(
            path, "_cp_file", self._name(path), self._name(target), deadline=_transfer_deadline(self._size(path))
        )

    def exists(self, path: str) -> bool:
        try:
            self._call(path, "_call_s3", "head_object", **self._key(path))
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str) -> list[str]:
        start = f"{self._base}{checked(prefix)}/"
        names: set[str] = set()
        for page in self._pages(start, Delimiter="/"):
            names.update(entry["Prefix"][len(start) :].rstrip("/") for entry in page.get("CommonPrefixes", []))
            names.update(entry["Key"][len(start) :] for entry in page.get("Contents", []))
        return sorted(names - {""})

    def walk(self, prefix: str) -> Iterator[str]:
        return (entry.path for entry in self.entries(prefix))

    def entries(self, prefix: str) -> Iterator[Stored]:
        for page in self._pages(f"{self._base}{checked(prefix)}/"):
            for entry in page.get("Contents", []):
                if not entry["Key"].endswith("/"):
                    yield Stored(entry["Key"][len(self._base) :], entry["Size"], entry["LastModified"].timestamp())

    def modified(self, path: str) -> float:
        found = self._call(path, "_call_s3", "head_object", **self._key(path))
        return float(found["LastModified"].timestamp())

    def _pages(self, start: str, **kwargs: Any) -> Iterator[dict[str, Any]]:
        while True:
            page = self._call("", "_call_s3", "list_objects_v2", Bucket=self._bucket, Prefix=start, **kwargs)
            yield page
            if not page.get("IsTruncated"):
                return
            kwargs["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, path: str) -> None:
        self._call(path, "_call_s3", "delete_object", **self._key(path))

    def delete_tree(self, prefix: str) -> None:
        paths = list(self.walk(prefix))
        for start in range(0, len(paths), 1000):
            objects = [{"Key": self._base + path} for path in paths[start : start + 1000]]
            answer = self._call(
                prefix,
                "_call_s3",
                "delete_objects",
                Bucket=self._bucket,
                Delete={"Objects": objects, "Quiet": True},
            )
            for failed in answer.get("Errors", []):
                raise StoreError(f"could not delete: {failed.get('Message')}", where=f"{self.url}/{failed.get('Key')}")

    def put_file(self, source: Path, path: str, on_bytes: OnBytes | None = None) -> tuple[int, str]:
        # Hashing first reads the file twice, the second time from the page cache; it leaves s3fs its parallel parts.
        with store_errors(str(source)):
            size, sha = source.stat().st_size, file_digest(source)
        self._call(
            path,
            "_put_file",
            str(source),
            self._name(path),
            callback=_counter(on_bytes),
            chunksize=PART,
            max_concurrency=PARTS_IN_FLIGHT,
            deadline=_transfer_deadline(size),
        )
        return size, sha

    def get_file(self, path: str, target: Path, on_bytes: OnBytes | None = None) -> None:
        for last in (False, True):
            try:
                self._call(
                    path,
                    "_get_file",
                    self._name(path),
                    str(target),
                    callback=_counter(on_bytes),
                    chunksize=PART,
                    max_concurrency=PARTS_IN_FLIGHT,
                    deadline=_transfer_deadline(self._size(path)),
                    where=f"{self.url}/{path} to {target}",
                )
                return
            except StoreUnreachable:
                # s3fs retries the request but not a body that breaks off in the middle.
                if last:
                    raise

    def _size(self, path: str) -> int:
        return int(self._call(path, "_call_s3", "head_object", **self._key(path))["ContentLength"])


def _transfer_deadline(size: int) -> float:
    return CALL_DEADLINE + size / SLOWEST_BYTES_PER_SECOND


def _counter(on_bytes: OnBytes | None) -> Any:
    from fsspec.callbacks import Callback

    class Counter(Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            if on_bytes:
                on_bytes(inc)

    return Counter()
