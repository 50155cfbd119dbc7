"""Are the bytes in a store what a manifest says? Read from the store itself, never from the local cache."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace

from infra.artifacts import FileEntry, Manifest
from infra.cache import cache_folder
from infra.objects import Objects
from infra.store_errors import store_errors
from infra.transfer import LARGE, in_parallel, problem


def artifact_faults(objects: Objects, manifest: Manifest, known: Mapping[str, bool] | None = None) -> list[str]:
    """What is wrong with the files of an artifact, one line for each. Raises StoreError where the store fails.

    known: of shared files that were read already, by their sha256, whether they are damaged.
    """
    known = known or {}
    prefix = f"{manifest.ref.prefix}/{manifest.attempt}"
    found: list[str] = []
    for part, entries in (("payload", manifest.payload), ("records", manifest.records)):
        read = [entry for entry in entries if not (entry.shared and entry.sha256 in known)]
        found += [f"{part}/{fault}" for fault in faults(objects, f"{prefix}/{part}", read).values()]
        bad = [entry for entry in entries if entry.shared and known.get(entry.sha256)]
        found += [f"{part}/{entry.path}: {entry.shared_path} is damaged or missing" for entry in bad]
        found += [f"{part}/{name}: not in the manifest" for name in strangers(objects, f"{prefix}/{part}", entries)]
    return found


def faults(objects: Objects, prefix: str, entries: Iterable[FileEntry]) -> dict[FileEntry, str]:
    """The entries whose bytes differ, or are missing, each with what is wrong with it."""
    entries = list(entries)
    found = in_parallel(
        lambda entry: (entry, fault(objects, prefix, entry)), entries, lambda entry: entry.size >= LARGE
    )
    return {entry: what for entry, what in found if what is not None}


def fault(objects: Objects, prefix: str, entry: FileEntry) -> str | None:
    """What is wrong with one file, or None."""
    return object_fault(objects, entry.within(prefix), entry)


def object_fault(objects: Objects, path: str, entry: FileEntry) -> str | None:
    """As `fault`, of the object at a store path that is to hold the bytes of `entry`."""
    if (own := objects.local_folder(path)) is not None:
        what = problem(own.parent, replace(entry, path=own.name))
        return what and what.replace(own.name, entry.path, 1)
    temporary = cache_folder() / ".tmp" / uuid.uuid4().hex
    with store_errors(f"{cache_folder()} (FORGELINE_CACHE)"):
        temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        objects.get_file(path, temporary)
        what = problem(temporary.parent, replace(entry, path=temporary.name))
        return what and what.replace(temporary.name, entry.path, 1)
    except FileNotFoundError:
        return f"{entry.path}: missing"
    finally:
        temporary.unlink(missing_ok=True)


def strangers(objects: Objects, prefix: str, entries: Iterable[FileEntry]) -> list[str]:
    """Files of a folder store that no manifest names: whoever reads the folder as it is would read them too."""
    entries = list(entries)
    known, own = {entry.path for entry in entries}, objects.local_folder(prefix)
    if own is None or not own.is_dir() or any(entry.shared for entry in entries):
        return []  # fetched into a folder of its own, which holds what was asked for
    names = sorted(path.relative_to(own).as_posix() for path in own.rglob("*") if not path.is_dir())
    return [name for name in names if name not in known]
