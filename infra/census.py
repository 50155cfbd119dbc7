"""What lies in a store, who needs it and how old it is: read once, so that `infra/garbage.py` can decide without I/O.

Ages are the store's own object times against the store's own clock; what records say of time is not used. The order of
reading matters beside runs that go on: first the time and who works on what, then what there is, at last who needs it.
So what is committed meanwhile is younger than `now`, and what was named before it was looked at is known as needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict, TypeVar

from infra import claims, refs
from infra.artifacts import Manifest
from infra.errors import CorruptArtifact, DamagedObject, StoreError, StoreUnreachable
from infra.lineage import Id
from infra.objects import Stored
from infra.process_id import is_dead, is_here
from infra.store import Store
from infra.stored_json import StoredJson

THREADS = 8
SILENT = 86400.0
"""Seconds without a new record after which a run that says it goes on is taken for killed, if its process is not known
to live. Runs write their record every quarter of a minute."""
MODELS = ("model", "onnx")
"""Types of artifacts that people point refs to."""
RUN_AGAIN = "It cannot be put back: run the pipeline again. `forgeline gc --delete` removes it after the grace."
Attempt = tuple[str, str, str]
"""Kind, key and attempt: a folder of files."""
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Keep:
    """What is kept: the last `history` values of every ref, what the last `runs` runs and all that still run made or
    reused, and whatever is younger than `grace` seconds. A run whose record was not written for `SILENT` seconds does
    not run any more, unless its process lives on this machine."""

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
    """The store at a moment. `held`: keys that somebody works on. `needed`: roots, each with the reason.

    damaged_trash: paths in the trash that are no manifests. nameless: refs of people that name nothing the store has,
    each with what to do. notes: what could not be read, a sentence for each.
    """

    now: float
    held: set[Id]
    live: dict[Id, Manifest] = field(default_factory=dict)
    unreadable: set[Id] = field(default_factory=set)
    trash: dict[str, Manifest] = field(default_factory=dict)
    objects: dict[str, Stored] = field(default_factory=dict)
    attempts: dict[Attempt, Pile] = field(default_factory=dict)
    checkpoints: dict[Id, Pile] = field(default_factory=dict)
    needed: dict[Id, str] = field(default_factory=dict)
    damaged_trash: set[str] = field(default_factory=set)
    nameless: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def models(self) -> list[Id]:
        """Models that the store has, those in the trash among them."""
        return [(m.kind, m.key) for m in (*self.live.values(), *self.trash.values()) if m.type in MODELS]


class NamedBy(TypedDict):
    """A stage of a run record."""

    artifact: NotRequired[refs.Named | None]


class NamingRun(TypedDict):
    """What is looked at of a run record (`tasks/run/record.py`)."""

    status: str
    stages: list[NamedBy]
    process: NotRequired[dict[str, Any] | None]


RUNS = StoredJson("the record of a run", NamingRun, "It is left out.", partly=True)


def take(store: Store, keep: Keep, before: Census | None = None) -> Census:
    """Look at everything. `before`: manifests that are the same objects as then are not read again.

    Raises StoreError where a manifest is of another version of Forgeline, which may need what this one does not know.
    """
    now = store.now()
    census = Census(now, claims.held(store, now))
    manifests: dict[str, Id] = {}
    for entry in store.entries("artifacts"):
        _, *place, rest = entry.path.split("/", 3) if entry.path.count("/") > 2 else ("", "")
        if rest == "manifest.json":
            manifests[entry.path] = (place[0], place[1])
            census.objects[entry.path] = entry
        elif "/" in rest:
            census.attempts.setdefault((place[0], place[1], rest.partition("/")[0]), Pile()).add(entry)
    for folder in ("files", "quarantine", "trash"):
        census.objects |= {entry.path: entry for entry in store.entries(folder)}
    for entry in store.entries("checkpoints"):
        if entry.path.count("/") > 2:
            _, kind, key, _ = entry.path.split("/", 3)
            census.checkpoints.setdefault((kind, key), Pile()).add(entry)
    _read_manifests(store, census, manifests, before)
    _read_refs(store, census, keep)
    _read_runs(store, census, keep)
    census.notes.sort()
    return census


def _read_manifests(store: Store, census: Census, paths: dict[str, Id], before: Census | None) -> None:
    def unchanged(path: str) -> bool:
        return before is not None and before.objects.get(path) == census.objects[path]

    def look(path: str) -> Manifest | CorruptArtifact | None:
        # None: it was listed and is gone, or a server says so for a moment. Its files count as named until it is clear.
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
        else:
            census.unreadable.add(id)

    def look_into_trash(path: str) -> Manifest | None:
        if before is not None and unchanged(path) and path in before.trash:
            return before.trash[path]
        try:
            return in_trash(store, path)
        except DamagedObject as error:
            census.damaged_trash.add(path)
            census.notes.append(f"{path}: {error.what}")
            return None

    trashed = [path for path in census.objects if path.startswith("trash/")]
    for path, manifest in zip(trashed, in_threads(look_into_trash, trashed), strict=True):
        if manifest is not None:
            census.trash[path] = manifest
        elif path not in census.damaged_trash:  # listed, and not there when it was read: as above
            _, kind, key, *_ = path.split("/")
            census.unreadable.add((kind, key))


def _read_refs(store: Store, census: Census, keep: Keep) -> None:
    """What refs name. Where an entry is damaged, whatever it may have named is needed."""
    limit = max(keep.history, 1)
    there = {*census.live, *census.unreadable, *((m.kind, m.key) for m in census.trash.values())}
    for name in refs.names(store):
        past = refs.past(store, name, limit)
        for entry in past.entries:
            place = past.number - entry.number
            why = f"ref {name}" + (f", {place} back" if place else "")
            census.needed.setdefault((entry.kind, entry.key), why)
        newest, latest = past.newest, refs.is_latest(name)
        if len(past.entries) < min(past.number, limit):
            census.notes.append(
                f"ref {name} has a damaged entry" + (": whatever it may name is kept" if latest or newest else "")
            )
            if latest or newest:
                _keep_what_it_may_name(census, name, past)
        if latest:
            continue
        if newest is None:
            try:
                refs.get(store, name)
            except refs.DamagedRef as error:
                census.nameless[name] = f"{error.what}\n  {error.hint}"
        elif (newest.kind, newest.key) not in there:
            census.nameless[name] = (
                f"{name} names {newest.kind} {newest.key[:12]}, which is not in the store\n"
                f"  Run the pipeline that makes it, or point {name} to a model that is there: "
                f"forgeline rollback {name}, or forgeline promote {name} MODEL."
            )


def _keep_what_it_may_name(census: Census, name: str, past: refs.Past) -> None:
    """An entry of a ref is damaged: what its stage made is needed, or, of a ref of people, every model."""
    kinds = {entry.kind for entry in past.entries}
    for id, manifest in census.live.items():
        made_by = f"{manifest.producer.get('pipeline')}/{manifest.producer.get('stage')}{refs.LATEST}"
        model = manifest.type in MODELS or manifest.kind in kinds
        if made_by == name if refs.is_latest(name) else model:
            census.needed.setdefault(id, f"ref {name}, of which an entry is damaged, may name it")


def _read_runs(store: Store, census: Census, keep: Keep) -> None:
    """What the last runs and those that go on name."""
    written = {
        entry.path.split("/")[1]: entry.modified for entry in store.entries("runs") if entry.path.endswith("/run.json")
    }

    def look(name: str) -> NamingRun | None:
        try:
            return RUNS.find(store, f"runs/{name}/run.json")
        except DamagedObject as error:
            census.notes.append(f"run {name} is left out: {error.what}")
            return None

    names = sorted(written)
    known = [(name, run) for name, run in zip(names, in_threads(look, names), strict=True) if run is not None]
    for place, (name, run) in enumerate(reversed(known)):
        if place < keep.runs or (run["status"] == "running" and _goes_on(run, census.now - written[name])):
            for stage in run["stages"]:
                if artifact := stage.get("artifact"):
                    census.needed.setdefault((artifact["kind"], artifact["key"]), f"run {name}")


def _goes_on(run: NamingRun, silent: float) -> bool:
    """Whether a run that says so does; silent: seconds since it wrote its record."""
    process = run.get("process") or {}
    return silent < SILENT or (is_here(process) and not is_dead(process))


def in_threads(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Results of `work`, in order; most of the time is spent waiting for the store."""
    with ThreadPoolExecutor(THREADS, thread_name_prefix="census") as pool:
        return list(pool.map(work, items))


def in_trash(store: Store, path: str) -> Manifest | None:
    """The manifest at a path of the trash; None if it is gone. Raises DamagedObject."""
    try:
        data = store.find_json(path)
        manifest = Manifest.from_json(data) if data is not None else None
        if manifest is not None and trash_path(manifest) != path:
            raise ValueError("it contradicts its place")
    except StoreUnreachable:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, StoreError) as error:
        what = error.what if isinstance(error, StoreError) else str(error)
        raise DamagedObject(
            f"the manifest of what is in the trash is damaged: {what}", where=path, hint=RUN_AGAIN
        ) from error
    return manifest


def trash_path(manifest: Manifest) -> str:
    """Where the manifest lies once it is in the trash."""
    return f"trash/{manifest.kind}/{manifest.key}/{manifest.attempt}/manifest.json"
