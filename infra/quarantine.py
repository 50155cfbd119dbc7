"""Quarantine: what is damaged, and only that, is moved away, so that it can be made again.

A server can answer wrongly for seconds: a maintenance page with status 200, half an object, "not there". So nothing is
moved or deleted on the strength of one reading. What looks damaged is read again after pauses (`Objects.doubts`); what
then stands and verifies ends it, at any point. What is still damaged is copied within the store, which needs no answer
of a reading; the copy is compared; only then the damaged object is deleted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from infra.artifacts import FileEntry, Manifest
from infra.errors import CorruptArtifact, StoreUnreachable
from infra.manifest_file import copy_path, manifest_path, parse_manifest, read_manifest
from infra.objects import Objects, checked
from infra.stored_bytes import artifact_faults, faults, object_fault, strangers

log = logging.getLogger(__name__)


class Suspect:
    """An artifact that somebody found damaged. `manifest`: as last read; None where it could not be."""

    def __init__(self, store: Objects, kind: str, key: str, attempt: str | None) -> None:
        self.store, self.kind, self.key, self.attempt = store, kind, key, attempt
        self.manifest: Manifest | None = None
        self._doubtful: dict[str, list[FileEntry]] = {}

    def sound(self) -> bool:
        """Whether manifest and bytes agree, or another attempt stands. Raises FileNotFoundError if nothing does.

        A file that verified once is not read again.
        """
        try:
            standing = read_manifest(self.store, self.kind, self.key)
        except CorruptArtifact:
            self.manifest = None
            return False
        if standing is None:
            raise FileNotFoundError(manifest_path(self.kind, self.key))
        if self.attempt and standing.attempt != self.attempt:
            return True
        if standing != self.manifest:
            self.manifest = standing
            self._doubtful = {"payload": standing.payload, "records": standing.records}
        prefix = f"{standing.ref.prefix}/{standing.attempt}"
        alien = False
        for part, entries in self._doubtful.items():
            self._doubtful[part] = list(faults(self.store, f"{prefix}/{part}", entries))
            alien = alien or bool(strangers(self.store, f"{prefix}/{part}", getattr(standing, part)))
        return not alien and not any(self._doubtful.values())

    def drop_shared(self) -> None:
        """Move away shared files whose bytes are not what their name says: `Store.share` takes them for stored."""
        for entry in [entry for entry in self._doubtful.get("payload", []) if entry.shared]:
            copy = _free(self.store, f"quarantine/files/{entry.sha256}/%d")
            try:
                self.store.copy(entry.shared_path, copy)
            except FileNotFoundError:
                continue
            if object_fault(self.store, copy, entry) is None:  # the file itself is in order, its readings were not
                self.store.delete(copy)
            elif object_fault(self.store, entry.shared_path, entry) is not None:
                self.store.delete(entry.shared_path)


def set_artifact_aside(store: Objects, kind: str, key: str, attempt: str | None) -> str | None:
    """See `Store.quarantine`."""
    suspect = Suspect(store, kind, key, attempt)

    def stem() -> str:
        suspect.drop_shared()
        return f"quarantine/{kind}/{key}/{checked(suspect.manifest.attempt if suspect.manifest else 'unreadable')}"

    place = move_aside(store, manifest_path(kind, key), stem, suspect.sound)
    if place is not None and suspect.manifest is None:
        _write_again(store, kind, key, store.read_bytes(place))
    return place


def _write_again(store: Objects, kind: str, key: str, damaged: bytes) -> None:
    """Write a manifest again from the copy beside its files, if those verify and it is certainly the one that stood."""
    attempts = [name for name in store.list(f"artifacts/{kind}/{key}") if name != "manifest.json"]
    for attempt in attempts:
        try:
            data = store.read_bytes(copy_path(kind, key, attempt))
            manifest = parse_manifest(data, kind, key)
        except (FileNotFoundError, CorruptArtifact):
            continue
        # An attempt that was never committed has a copy too.
        stood = attempt.encode() in damaged or len(attempts) == 1
        if stood and manifest.attempt == attempt and not artifact_faults(store, manifest):
            store.create(manifest_path(kind, key), data)
            log.warning("the manifest of %s %s was damaged; it is written again from its copy", kind, key[:12])
            return


def move_aside(objects: Objects, source: str, stem: Callable[[], str], sound: Callable[[], bool]) -> str | None:
    """Move a damaged manifest to `<stem>-<n>/manifest.json`; the place it has now, or None where it is left alone.

    sound: reads again whether it is damaged at all; raises FileNotFoundError where it is gone. stem: asked once it is
    certain. Raises StoreUnreachable where the store does not answer with what it holds.
    """
    try:
        for pause in objects.doubts:
            if sound():
                return None
            time.sleep(pause)
        if sound():
            return None
        data = objects.read_bytes(source)
        listed = {entry.path: entry.size for entry in objects.entries(source.rpartition("/")[0])}
        _require_true(objects, source, listed.get(source) in (None, len(data)))
        target = _free(objects, stem().replace("%", "%%") + "-%d/manifest.json")
        objects.copy(source, target)
        if objects.read_bytes(target) != data or sound():
            # Either reading may be the wrong one. Nothing has been moved, and nothing is.
            objects.delete(target)
            _require_true(objects, source, sound())
            return None
        objects.delete(source)
        return target
    except FileNotFoundError:
        return None


def _require_true(objects: Objects, path: str, true: bool) -> None:
    if not true:
        raise StoreUnreachable(
            "the store answers with other bytes than it holds; nothing was moved",
            where=f"{objects.url}/{path}",
            hint="Is it under maintenance, or behind a proxy that answers in its place? Run again later.",
        )


def _free(objects: Objects, pattern: str) -> str:
    """The first name of the pattern that is not taken; it has a place for a number."""
    number = 1
    while objects.exists(pattern % number):
        number += 1
    return pattern % number
