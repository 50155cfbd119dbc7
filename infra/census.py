"""What lies in a store, who needs it and how old it is: read once, so that `infra/garbage.py` can decide without I/O.

Ages are the store's own object times against the store's own clock; what records say of time is not used. The order of
reading matters beside runs that go on: first the time and who works on what, then what there is, at last who needs it.
So what is committed meanwhile is younger than `now`, and what was named before it was looked at is known as needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from infra import claims, refs
from infra.artifacts import Manifest
from infra.errors import CorruptArtifact, StoreError
from infra.lineage import Id
from infra.objects import Stored
from infra.store import Store

THREADS = 8
REMOVE = "Nothing needs what is in the trash: remove that object."
Attempt = tuple[str, str, str]
"""Kind, key and attempt: a folder of files."""
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Keep:
    """What is kept: the last `history` values of every ref, what the last `runs` runs and all that still run made or
    reused, and whatever is younger than `grace` seconds."""

    grace: float = 7 * 86400.0
    runs: int = 20
    history: int = 5


@dataclass
class Pile:
    """Objects that go together: how many bytes, and when the newest was written."""

    bytes: int = 0
    newest: float = 0.0

    def add(self, entry: Stored) -> None:
        self.bytes, self.newest = self.bytes + entry.size, max(self.newest, entry.modified)


@dataclass
class Census:
    """The store at a moment. `held`: keys that somebody works on. `needed`: roots, each with the reason."""

    now: float
    held: set[Id]
    live: dict[Id, Manifest] = field(default_factory=dict)
    unreadable: set[Id] = field(default_factory=set)
    trash: dict[str, Manifest] = field(default_factory=dict)
    objects: dict[str, Stored] = field(default_factory=dict)
    attempts: dict[Attempt, Pile] = field(default_factory=dict)
    checkpoints: dict[Id, Pile] = field(default_factory=dict)
    needed: dict[Id, str] = field(default_factory=dict)


def take(store: Store, keep: Keep, before: Census | None = None) -> Census:
    """Look at everything. `before`: manifests that are the same objects as then are not read again.

    Raises StoreError where a manifest is of another version of Forgeline, which may need what this one does not know.
    """
    now = store.now()
    census = Census(now, claims.held(store, now))
    manifests: dict[str, Id] = {}
    for entry in store.entries("artifacts"):
        _, kind, key, *rest = entry.path.split("/")
        if rest == ["manifest.json"]:
            manifests[entry.path] = (kind, key)
            census.objects[entry.path] = entry
        elif len(rest) > 1:
            census.attempts.setdefault((kind, key, rest[0]), Pile()).add(entry)
    for folder in ("files", "quarantine", "trash"):
        census.objects |= {entry.path: entry for entry in store.entries(folder)}
    for entry in store.entries("checkpoints"):
        _, kind, key, *rest = entry.path.split("/")
        census.checkpoints.setdefault((kind, key), Pile()).add(entry)
    _read_manifests(store, census, manifests, before)
    census.needed = needed(store, keep)
    return census


def _read_manifests(store: Store, census: Census, paths: dict[str, Id], before: Census | None) -> None:
    def unchanged(path: str) -> bool:
        return before is not None and before.objects.get(path) == census.objects[path]

    def look(path: str) -> Manifest | CorruptArtifact | None:
        if before is not None and unchanged(path) and (known := before.live.get(paths[path])) is not None:
            return known
        try:
            return store.manifest(*paths[path])
        except CorruptArtifact as error:
            return error
        except StoreError as error:
            raise error.within(path) from error

    for (_, id), found in zip(paths.items(), in_threads(look, paths), strict=True):
        if isinstance(found, Manifest):
            census.live[id] = found
        elif found is not None:
            census.unreadable.add(id)

    def look_into_trash(path: str) -> Manifest | None:
        if before is not None and unchanged(path) and path in before.trash:
            return before.trash[path]
        return in_trash(store, path)

    trashed = [path for path in census.objects if path.startswith("trash/")]
    for path, manifest in zip(trashed, in_threads(look_into_trash, trashed), strict=True):
        if manifest is not None:
            census.trash[path] = manifest


def needed(store: Store, keep: Keep) -> dict[Id, str]:
    """What refs and runs name, and for each the first reason found."""
    found: dict[Id, str] = {}
    for name in refs.names(store):
        for place, entry in enumerate(refs.history(store, name, limit=max(keep.history, 1))):
            found.setdefault((entry.kind, entry.key), f"ref {name}" + (f", {place} back" if place else ""))
    names = store.list("runs")
    records = in_threads(lambda name: store.find_json(f"runs/{name}/run.json"), names)
    known = [(name, record) for name, record in zip(names, records, strict=True) if isinstance(record, dict)]
    for place, (name, record) in enumerate(reversed(known)):
        if place < keep.runs or record.get("status") == "running":
            for id in _artifacts(record):
                found.setdefault(id, f"run {name}")
    return found


def _artifacts(record: dict[str, Any]) -> Iterable[Id]:
    for stage in record.get("stages") or []:
        if isinstance(artifact := stage.get("artifact"), dict):
            yield str(artifact["kind"]), str(artifact["key"])


def in_threads(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Results of `work`, in order; most of the time is spent waiting for the store."""
    with ThreadPoolExecutor(THREADS, thread_name_prefix="census") as pool:
        return list(pool.map(work, items))


def in_trash(store: Store, path: str) -> Manifest | None:
    """The manifest at a path of the trash; None if it is gone. Raises StoreError on one that does not belong there."""
    try:
        data = store.find_json(path)
        manifest = Manifest.from_json(data) if data is not None else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"not a manifest ({error})", where=path, hint=REMOVE) from error
    if manifest is not None and trash_path(manifest) != path:
        raise StoreError("the manifest contradicts its place", where=path, hint=REMOVE)
    return manifest


def trash_path(manifest: Manifest) -> str:
    """Where the manifest lies once it is in the trash."""
    return f"trash/{manifest.kind}/{manifest.key}/{manifest.attempt}/manifest.json"
