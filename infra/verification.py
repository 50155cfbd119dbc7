"""Does a store hold what its manifests say? Every byte is read again, from the store and not from a cache.

    found = verify_store(store)                            # all there is
    found = verify_artifacts(store, [("pretrain", key)])   # some of it
    last_verified(store)                                   # when all of it was verified last, and what was found

Nothing is moved, but for `set_aside`. What runs beside it and is collected meanwhile is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TypedDict

from infra import refs
from infra.artifacts import Manifest
from infra.census import in_threads, in_trash
from infra.checkpoints import CheckpointStore
from infra.errors import CorruptArtifact, DamagedObject, StoreError, StoreUnreachable, WrongReference
from infra.journal import damaged_entries
from infra.lineage import Id
from infra.manifest_file import copy_path, parse_manifest
from infra.pointed import pointed
from infra.store import Store
from infra.stored_bytes import artifact_faults, object_fault
from infra.stored_json import StoredJson

LAST = "verified/last.json"
RESUMES = "Nothing to do: a training run that resumes skips it and goes on from the one before."
OnArtifact = Callable[[int, int], None]
"""Called with (artifacts done, artifacts in all), from any thread."""


class Last(TypedDict):
    """When all of a store was verified last (UTC), how much was read, and how many objects were damaged."""

    at: str
    artifacts: int
    bytes: int
    damaged: int


REPORT = StoredJson("the note on the last verification", Last, "forgeline verify --all writes it again.")


@dataclass(frozen=True)
class Damage:
    """A damaged object: its store path, what is wrong, what to do. `artifact`: kind, key and attempt, if it is one."""

    path: str
    what: str
    mend: str
    artifact: tuple[str, str, str] | None = None


@dataclass
class Verified:
    """How many artifacts, checkpoints, refs and journals were looked at, how many bytes were read, and the damage."""

    artifacts: int = 0
    checkpoints: int = 0
    refs: int = 0
    journals: int = 0
    bytes: int = 0
    damaged: list[Damage] = field(default_factory=list)


def verify_store(store: Store, on_artifact: OnArtifact = lambda done, total: None) -> Verified:
    """Everything. Raises StoreError where the store fails."""
    paths = [path.split("/") for path in store.walk("artifacts")]
    found = verify_artifacts(store, [(p[1], p[2]) for p in paths if p[3:] == ["manifest.json"]], on_artifact)
    _verify_trash(store, found)
    _verify_checkpoints(store, found)
    for name in refs.names(store):
        verify_ref(store, name, found)
    _verify_journals(store, found)
    return found


def verify_artifacts(store: Store, ids: Iterable[Id], on_artifact: OnArtifact = lambda done, total: None) -> Verified:
    """Manifests, payload, records and shared files of some artifacts; a file that several share is read once."""
    found, ids = Verified(), sorted(set(ids))
    manifests: list[Manifest] = []

    def read(id: Id) -> Manifest | Damage | None:
        try:
            return store.manifest(*id)
        except CorruptArtifact as error:
            return Damage(f"artifacts/{id[0]}/{id[1]}/manifest.json", error.what, _mend(*id), (*id, ""))

    for one in in_threads(read, ids):
        if isinstance(one, Damage):
            found.damaged.append(one)
        elif one is not None:
            manifests.append(one)
    found.artifacts = len(manifests) + len(found.damaged)
    shared = {entry.sha256: entry for manifest in manifests for entry in manifest.payload if entry.shared}
    bad = {sha for sha, entry in shared.items() if object_fault(store, entry.shared_path, entry) is not None}
    for done, manifest in enumerate(manifests, start=1):
        faults = artifact_faults(store, manifest, known={sha: sha in bad for sha in shared})
        if faults and store.glances:
            time.sleep(sum(store.glances))  # one wrong answer of a server is no damage
            faults = artifact_faults(store, manifest)
        found.bytes += sum(entry.size for entry in (*manifest.payload, *manifest.records) if not entry.shared)
        if (of_copy := _copy_fault(store, manifest)) is not None:
            found.damaged.append(of_copy)
        standing = store.manifest(manifest.kind, manifest.key) if faults else manifest
        if faults and standing == manifest:
            found.damaged.append(_damaged_files(manifest, faults))
        on_artifact(done, len(manifests))
    found.bytes += sum(entry.size for entry in shared.values())
    return found


def verify_ref(store: Store, name: str, found: Verified) -> None:
    """A ref, every entry of its history, and whether it points to something; not the bytes of that."""
    found.refs += 1
    past = refs.past(store, name)
    try:
        entry = refs.get(store, name)
        assert entry is not None, "it has just been listed"
        if not _is_there(store, entry):
            again = f"forgeline promote {name} MODEL, or forgeline rollback {name}"
            mend = "Run its pipeline again." if refs.is_latest(name) else f"Run the pipeline that makes it, or {again}."
            what = f"entry {entry.number} points to {entry.kind} {entry.key[:12]}, which is not in the store"
            found.damaged.append(Damage(f"refs/{name}", what, mend))
    except (DamagedObject, WrongReference) as error:
        mend = "Run its pipeline again: it is written again." if refs.is_latest(name) else error.hint or ""
        found.damaged.append(Damage(f"refs/{name}", error.what, mend))
    readable = {entry.number for entry in past.entries}
    for number in range(1, past.number):
        if number not in readable:
            mend = "Nothing to do, unless somebody asks for that entry: what the ref points to now is known."
            found.damaged.append(Damage(f"refs/{name}/{number:06d}.json", "the entry is damaged", mend))


def _is_there(store: Store, entry: refs.RefEntry) -> bool:
    try:
        return pointed(store, entry) is not None
    except CorruptArtifact:
        return True  # its damage is reported for the artifact itself


def set_aside(store: Store, damage: Damage) -> str | None:
    """Set a damaged artifact aside, as a run does that meets it; the place of its manifest, None if it was left alone.

    It is read again first, more than once (`infra.quarantine`).
    """
    return store.quarantine(*damage.artifact) if damage.artifact else None


def note(store: Store, found: Verified) -> None:
    """Keep in the store that all of it was verified now."""
    at = datetime.now(UTC).isoformat("T", "seconds")
    last = Last(at=at, artifacts=found.artifacts, bytes=found.bytes, damaged=len(found.damaged))
    store.write_bytes(LAST, REPORT.encode(last))


def last_verified(store: Store) -> Last | None:
    """When all of the store was verified last; None: never. Raises DamagedObject."""
    return REPORT.find(store, LAST)


def to_json(found: Verified) -> dict[str, object]:
    """For scripts."""
    return asdict(found)


def _copy_fault(store: Store, manifest: Manifest) -> Damage | None:
    """What is wrong with the copy of a manifest, if it has one."""
    path = copy_path(manifest.kind, manifest.key, manifest.attempt)
    try:
        read = partial(parse_manifest, kind=manifest.kind, key=manifest.key)
        copy = store.again(lambda: read(store.read_bytes(path)), CorruptArtifact, store.glances)
        what = "" if copy == manifest else "it differs from the manifest"
    except FileNotFoundError:
        return None
    except CorruptArtifact as error:
        what = error.what
    mend = "Nothing to do: the manifest itself is in order."
    return Damage(path, f"the copy of the manifest: {what}", mend) if what else None


def _damaged_files(manifest: Manifest, faults: list[str]) -> Damage:
    shown = "; ".join(faults[:5]) + (f"; {len(faults) - 5} more" if len(faults) > 5 else "")
    mend = _mend(manifest.kind, manifest.key, manifest.producer.get("pipeline"), manifest.producer.get("stage"))
    if all(fault.startswith("records/") for fault in faults):
        shown += " (what it made is in order, the evidence beside it is not)"
    return Damage(manifest.ref.prefix, shown, mend, (manifest.kind, manifest.key, manifest.attempt))


def _mend(kind: str, key: str, pipeline: object = None, stage: object = None) -> str:
    whose = f"pipeline {pipeline} again: stage {stage} makes it again" if pipeline and stage else "its pipeline again"
    return f"forgeline verify {kind}/{key[:12]} --set-aside, then run {whose}."


def _verify_trash(store: Store, found: Verified) -> None:
    for path in store.walk("trash"):
        try:
            in_trash(store, path)
        except StoreUnreachable:
            raise
        except StoreError as error:
            found.damaged.append(Damage(path, error.what, error.hint or ""))


def _verify_checkpoints(store: Store, found: Verified) -> None:
    for kind in store.list("checkpoints"):
        for key in store.list(f"checkpoints/{kind}"):
            points = CheckpointStore(store, kind, key)
            for step in points.steps():
                try:
                    faults = points.faults(step)
                except FileNotFoundError:
                    continue
                found.checkpoints += 1
                if faults and step in points.steps():
                    path = f"checkpoints/{kind}/{key}/step-{step:09d}"
                    found.damaged.append(Damage(path, "; ".join(faults[:5]), RESUMES))


def _verify_journals(store: Store, found: Verified) -> None:
    for path, what in damaged_entries(store).items():
        mend = "Nothing to do: if it is the last of its journal, the next look sets it aside and decides again."
        found.damaged.append(Damage(path, what, mend))
    found.journals = len({path.rpartition("/")[0] for path in store.walk("journals")})
