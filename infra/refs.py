"""Refs: names for artifacts that people use, such as `stdlib-code/production` or `stdlib-code/base/latest`.

    refs/<name>/000001.json      each move of the name is a new, create-only object; the newest number is its value

So a ref is compare-and-set and keeps its history, with nothing but create-only writes: of two who move a ref from the
same state, one creates the next number and the other is told.
"""

from __future__ import annotations

import getpass
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from infra.artifacts import ArtifactRef
from infra.errors import StoreError, UsageError
from infra.objects import json_bytes
from infra.store import Store

PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
ENTRY = re.compile(r"\d{6}\.json")


class RefConflict(StoreError):
    """The ref moved since it was read; read it again before deciding."""


@dataclass(frozen=True)
class RefEntry:
    """One move of a ref. `number` counts from 1; `at` is UTC, for people; `by` is who or which run moved it."""

    name: str
    number: int
    artifact: ArtifactRef
    note: str = ""
    by: str = ""
    at: str = ""

    @property
    def kind(self) -> str:
        return self.artifact.kind

    @property
    def key(self) -> str:
        return self.artifact.key

    @property
    def digest(self) -> str:
        return self.artifact.digest

    @property
    def type(self) -> str:
        return self.artifact.type


def is_name(name: str) -> bool:
    """Whether `name` can be a ref: parts of letters, digits and `._-`, joined by `/`."""
    return all(PART.fullmatch(part) and not ENTRY.fullmatch(part) for part in name.split("/"))


def checked_name(name: str) -> str:
    """`name` if it can be a ref. Raises UsageError."""
    if not is_name(name):
        raise UsageError(
            f"{name!r} cannot be the name of a ref",
            hint="Use letters, digits, '.', '_' and '-', in parts joined by '/', e.g. my-pipeline/production.",
        )
    return name


def get(store: Store, name: str) -> RefEntry | None:
    """Where a ref points now, or None if it was never set."""
    number = max(_numbers(store, checked_name(name)), default=0)
    entry = _read(store, name, number) if number else None
    # A listing may lag behind; the numbers have no gaps, so looking one further is enough.
    while (later := _read(store, name, number + 1)) is not None:
        entry, number = later, number + 1
    return entry


def history(store: Store, name: str, limit: int | None = None) -> list[RefEntry]:
    """Every move of a ref, newest first; the last `limit` of them."""
    newest = get(store, name)
    if newest is None:
        return []
    last = 0 if limit is None else max(newest.number - limit, 0)
    older = (_read(store, name, number) for number in range(newest.number - 1, last, -1))
    return [newest, *(entry for entry in older if entry is not None)]


def names(store: Store, prefix: str = "") -> list[str]:
    """Names of all refs that start with `prefix`, sorted."""
    found = {path.removeprefix("refs/").rpartition("/")[0] for path in store.walk("refs") if ENTRY.search(path)}
    return sorted(name for name in found if name.startswith(prefix))


def set(
    store: Store, name: str, artifact: ArtifactRef, *, expected: int, note: str = "", by: str = "", force: bool = False
) -> RefEntry:
    """Move a ref whose newest entry has the number `expected` (0: it must not exist yet); returns the newest entry.

    Pointing it to where it points already adds nothing, unless `force`. Raises RefConflict if it has moved since.
    """
    current = get(store, name)
    number = current.number if current else 0
    if number == expected:
        if current and current.artifact == artifact and not force:
            return current
        entry = RefEntry(name, number + 1, artifact, note, by or _user(), datetime.now(UTC).isoformat("T", "seconds"))
        if store.create(_path(name, entry.number), json_bytes(asdict(entry))):
            return entry
        current = get(store, name)
    now = f"{current.kind} {current.key[:12]} (entry {current.number})" if current else "nothing"
    raise RefConflict(
        f"it was moved meanwhile and points to {now}", where=f"refs/{name}", hint="Look at it, then decide again."
    )


def advance(store: Store, name: str, artifact: ArtifactRef, *, note: str = "", by: str = "") -> RefEntry:
    """Move a ref whatever it points to now: for `latest`, where the last one to finish is right by definition."""
    while True:
        current = get(store, name)
        try:
            return set(store, name, artifact, expected=current.number if current else 0, note=note, by=by)
        except RefConflict:
            continue


def _path(name: str, number: int) -> str:
    return f"refs/{name}/{number:06d}.json"


def _numbers(store: Store, name: str) -> list[int]:
    return [int(entry[:6]) for entry in store.list(f"refs/{name}") if ENTRY.fullmatch(entry)]


def _read(store: Store, name: str, number: int) -> RefEntry | None:
    data: dict[str, Any] | None = store.find_json(_path(name, number))
    if data is None:
        return None
    try:
        return RefEntry(**{**data, "artifact": ArtifactRef(**data["artifact"])})
    except (KeyError, TypeError) as error:
        raise StoreError(f"not a ref entry ({error})", where=_path(name, number)) from error


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
