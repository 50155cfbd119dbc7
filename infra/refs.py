"""Refs: names for artifacts that people use, such as `stdlib-code/production` or `stdlib-code/base/latest`.

    refs/<name>/000001.json      each move of the name is a new, create-only object; the newest number is its value

So a ref is compare-and-set and keeps its history, with nothing but create-only writes: of two who move a ref from the
same state, one creates the next number and the other learns of it.

A damaged entry keeps its number. Where it is the newest, nobody knows what the ref means: `get` and `history` raise.
Then `latest` refs are written again by the next run, all others by a person. An older one is left out of the history,
which shows as a gap in the numbers.
"""

from __future__ import annotations

import getpass
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TypedDict

from infra.artifacts import ArtifactRef
from infra.errors import DamagedObject, StoreError, UsageError
from infra.store import Store
from infra.stored_json import StoredJson

LATEST = "/latest"
"""How the name of a ref ends that every run moves to what its stage made."""
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
ENTRY = re.compile(r"\d{6}\.json")


class RefConflict(StoreError):
    """The ref moved since it was read; read it again before deciding."""


class DamagedRef(DamagedObject):
    """The newest entry of a ref cannot be read, so nobody knows what the ref means."""


class Named(TypedDict):
    """The artifact that an entry or a record names."""

    kind: str
    key: str
    digest: str
    type: str


class Entry(TypedDict):
    """An entry as it is stored."""

    name: str
    number: int
    artifact: Named
    note: str
    by: str
    at: str


ENTRIES = StoredJson("an entry of a ref", Entry, "forgeline show REF says what to do.")


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
    """Where a ref points now, or None if it was never set. Raises DamagedRef."""
    number = newest_number(store, name)
    return _newest(store, name, number) if number else None


def newest_number(store: Store, name: str) -> int:
    """How often a ref was moved, whether or not its entries can be read."""
    number = max(_numbers(store, checked_name(name)), default=0)
    # A listing may lag behind; the numbers have no gaps, so looking one further is enough.
    while store.exists(_path(name, number + 1)):
        number += 1
    return number


def history(store: Store, name: str, limit: int | None = None) -> list[RefEntry]:
    """Every move of a ref that can be read, newest first; of the last `limit`. Raises DamagedRef."""
    number = newest_number(store, name)
    return [_newest(store, name, number), *_readable(store, name, number - 1, limit and limit - 1)] if number else []


@dataclass(frozen=True)
class Past:
    """What can be read of a ref's history, newest first; `number`: of its newest entry, be it readable or not."""

    number: int
    entries: list[RefEntry]

    @property
    def newest(self) -> RefEntry | None:
        """Where the ref points; None if it was never set, or that is unknown."""
        return self.entries[0] if self.entries and self.entries[0].number == self.number else None


def past(store: Store, name: str, limit: int | None = None) -> Past:
    """As `history`, also where the newest entry is damaged."""
    number = newest_number(store, name)
    return Past(number, _readable(store, name, number, limit))


def is_latest(name: str) -> bool:
    """Whether runs keep the ref by themselves, so that a damaged one is written again."""
    return name.endswith(LATEST)


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
    number = newest_number(store, name)
    if number == expected:
        current = _entry(store, name, number)
        if isinstance(current, RefEntry) and current.artifact == artifact and not force:
            return current
        entry = RefEntry(name, number + 1, artifact, note, by or _user(), datetime.now(UTC).isoformat("T", "seconds"))
        if store.create(_path(name, entry.number), ENTRIES.encode(asdict(entry))):
            return entry
        number = newest_number(store, name)
    current = _entry(store, name, number)
    now = f"{current.kind} {current.key[:12]} (entry {number})" if isinstance(current, RefEntry) else f"entry {number}"
    raise RefConflict(
        f"it was moved meanwhile and points to {now if number else 'nothing'}",
        where=f"refs/{name}",
        hint="Look at it, then decide again.",
    )


def advance(store: Store, name: str, artifact: ArtifactRef, *, note: str = "", by: str = "") -> RefEntry:
    """Move a ref whatever it points to now: for `latest`, where the last one to finish is right by definition."""
    while True:
        try:
            return set(store, name, artifact, expected=newest_number(store, name), note=note, by=by)
        except RefConflict:
            continue


def _path(name: str, number: int) -> str:
    return f"refs/{name}/{number:06d}.json"


def _numbers(store: Store, name: str) -> list[int]:
    return [int(entry[:6]) for entry in store.list(f"refs/{name}") if ENTRY.fullmatch(entry)]


def _newest(store: Store, name: str, number: int) -> RefEntry:
    found = _entry(store, name, number)
    if isinstance(found, RefEntry):
        return found
    why = found.what if found else "it is gone"
    if is_latest(name):
        hint = "Run its pipeline again: what a stage made last is then written again."
    else:
        older = ", ".join(f"{one.number} ({one.kind} {one.key[:12]})" for one in _readable(store, name, number - 1, 5))
        back = (
            f"Entries before it: {older}. `forgeline rollback {name}` points it to the last of them, `--to N` to any; "
        )
        other = f"`forgeline promote {name} MODEL` to another model, with --force where no gate was asked."
        hint = (back if older else "It has no entry before. ") + other
    raise DamagedRef(
        f"entry {number} is damaged, so what {name} points to is not known ({why})", where=f"refs/{name}", hint=hint
    )


def _readable(store: Store, name: str, newest: int, limit: int | None) -> list[RefEntry]:
    last = 0 if limit is None else max(newest - limit, 0)
    found = (_entry(store, name, number) for number in range(newest, last, -1))
    return [entry for entry in found if isinstance(entry, RefEntry)]


def _entry(store: Store, name: str, number: int) -> RefEntry | DamagedObject | None:
    """An entry, what is wrong with it, or None where there is none."""
    try:
        data = ENTRIES.find(store, _path(name, number)) if number else None
        if data is not None and (data["name"], data["number"]) != (name, number):
            raise ENTRIES.damaged("it contradicts its place", _path(name, number))
    except DamagedObject as error:
        return error
    if data is None:
        return None
    return RefEntry(name, number, ArtifactRef(**data["artifact"]), data["note"], data["by"], data["at"])


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
