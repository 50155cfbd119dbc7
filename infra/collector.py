"""Garbage collection: the decisions of `infra/garbage.py`, carried out beside runs that go on.

    plan = look(store, Keep())           # what would go; changes nothing
    done = collect(store, Keep())        # one round; what lies in the trash for the grace is removed by a later one
    restore(store, "pretrain", key)      # back out of the trash

Each step is decided on a census of its own. That is what makes it safe: a run first names what it uses (a ref, its
record) and then looks whether it is still there (`tasks/run/execute.py`); this first moves a manifest and then looks
whether it is named by now, and if so puts it back. Whatever the order, one of the two sees the other.

Killed at any point it leaves a store that is whole: a manifest lies in its place, in the trash, or in both (then it
stands), and files without a manifest are found again by the next round.
"""

from __future__ import annotations

import time
from dataclasses import replace

from infra import claims
from infra.artifacts import Manifest
from infra.census import Census, Keep, in_threads, in_trash, take, trash_path
from infra.checkpoints import CheckpointStore
from infra.config_check import did_you_mean
from infra.errors import DamagedObject, StoreError, StoreUnreachable, UsageError
from infra.garbage import Item, Plan, decide, who_shares
from infra.lineage import SourceFile, read_sources
from infra.manifest_file import manifest_path
from infra.objects import json_bytes
from infra.store import Store

LOOK_AGAIN = 1.0
"""Seconds after which it is asked again whether somebody began to share files, while these are removed."""


def look(store: Store, keep: Keep) -> Plan:
    """What `collect` would do now."""
    plan = _decided(store, take(store, keep), keep, ahead=True)
    plan.files += _uploads(store, remove=False)
    return plan


def collect(store: Store, keep: Keep) -> Plan:
    """One round; returns what was done. `keep.grace` 0 asks for two rounds until what is not needed is gone."""
    first = take(store, keep)
    moved = [item for item in _decided(store, first, keep).to_trash if _move(store, first, item)]
    second = take(store, keep, first)
    plan = _decided(store, second, keep)
    for path in plan.put_back:
        _put_back(store, second.trash[path], path)
    left = [item for item in plan.from_trash if second.objects[item.path] == first.objects.get(item.path)]
    left = [item for item in left if item.path not in second.damaged_trash or _stays_damaged(store, item.path)]
    for item in left:
        store.delete(item.path)
    third = take(store, keep, second)
    last = _decided(store, third, keep)
    gone = [*_removed(store, third, last.files), *_uploads(store, remove=True)]
    return Plan(last.kept, moved, left, gone, plan.put_back, last.waits, last.stays, last.notes)


def restore(store: Store, kind: str, key: str) -> Manifest:
    """Put the artifact whose key begins with `key` back; the newest attempt, if there are several.

    Its age counts again, so it stays for the grace; a ref keeps it. Raises UsageError, or StoreError if bytes are gone.
    """
    paths = [path for path in store.walk(f"trash/{kind}") if path.split("/")[2].startswith(key)]
    keys = {path.split("/")[2] for path in paths}
    if len(keys) != 1:
        known = {"/".join(path.split("/")[1:3]) for path in store.walk("trash")}
        hint = f"{len(keys)} keys begin like that." if keys else did_you_mean(f"{kind}/{key}", known)
        raise UsageError(f"no artifact {kind}/{key} in the trash", hint=hint or "The trash is empty.")
    if store.exists(f"artifacts/{kind}/{keys.pop()}/manifest.json"):
        raise UsageError(f"{kind}/{key} stands already", hint="It was made again, or put back before.")
    path = max(paths, key=store.modified)
    manifest = in_trash(store, path)
    assert manifest is not None, "it has just been listed"
    prefix = f"{manifest.ref.prefix}/{manifest.attempt}"
    files = [
        *(entry.within(f"{prefix}/payload") for entry in manifest.payload),
        *(entry.within(f"{prefix}/records") for entry in manifest.records),
    ]
    missing = [file for file, there in zip(files, in_threads(store.exists, files), strict=True) if not there]
    if missing:
        raise StoreError(f"{len(missing)} of its files are gone", where=missing[0], hint="Run the pipeline again.")
    _put_back(store, manifest, path)
    return manifest


def _decided(store: Store, census: Census, keep: Keep, *, ahead: bool = False) -> Plan:
    def sources(manifest: Manifest) -> tuple[SourceFile, ...]:
        try:
            return read_sources(store, manifest)
        except StoreUnreachable:
            raise
        except StoreError:
            return ()  # damaged records name no file, so they keep none

    return decide(census, keep, sources, ahead=ahead)


def _move(store: Store, census: Census, item: Item) -> bool:
    """Move a manifest to the trash, unless somebody began to work on its key or it changed. The copy comes first."""
    _, kind, key, _ = item.path.split("/")
    manifest = census.live[kind, key]
    if _at_work(store, census, kind, key) or store.manifest(kind, key) != manifest:
        return False
    store.copy(item.path, trash_path(manifest))
    if in_trash(store, trash_path(manifest)) != manifest:
        return False
    store.delete(item.path)
    return True


def _stays_damaged(store: Store, path: str) -> bool:
    """Whether a note in the trash is damaged by every reading: what a server says once costs nothing."""
    try:
        store.again(lambda: in_trash(store, path), DamagedObject, store.doubts)
    except DamagedObject:
        return True
    return False


def _put_back(store: Store, manifest: Manifest, path: str) -> None:
    """The note in the trash goes once the manifest stands in its place again: this one, or that of another attempt."""
    store.create(manifest_path(manifest.kind, manifest.key), json_bytes(manifest.to_json()))
    if store.manifest(manifest.kind, manifest.key) is None:
        raise StoreError("it was put back, but is not there", where=manifest.ref.prefix, hint="Collect again.")
    store.delete(path)


def _removed(store: Store, census: Census, items: list[Item]) -> list[Item]:
    """Remove files that no manifest names; returns what was removed, which leaves out what somebody works on by now."""
    gone: list[Item] = []
    looked, waits = -LOOK_AGAIN, ""
    for item in items:
        _, kind, key, *rest = [*item.path.rstrip("/").split("/"), "", ""]
        if item.what == "shared file":
            if time.monotonic() - looked >= LOOK_AGAIN:
                waits = who_shares(replace(census, held=claims.held(store, census.now)))
                looked = time.monotonic()
            if waits:
                continue
            store.delete(item.path)
        elif item.what == "set aside":
            store.delete(item.path)
        elif _at_work(store, census, kind, key):
            continue
        elif item.what == "checkpoint":
            CheckpointStore(store, kind, key).clear()
        else:
            standing = store.manifest(kind, key)
            if standing is not None and standing.attempt == rest[0]:
                continue
            store.delete_tree(item.path.rstrip("/"))
        gone.append(item)
    return gone


def _at_work(store: Store, census: Census, kind: str, key: str) -> bool:
    return (kind, key) in claims.held(store, census.now, f"claims/{kind}/{key}")


def _uploads(store: Store, *, remove: bool) -> list[Item]:
    why = "left half-written a day ago or more"
    return [Item(path, "upload", "uploads", 0, why) for path in store.unfinished(remove=remove)]
