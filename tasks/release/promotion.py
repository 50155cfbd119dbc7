"""Moving a ref to what was released, and back. Publishing runs in the orchestrator, after the release is committed.

The weights' ref moves first: a run that dies between the two moves has not moved the release, and the next one does
both again. Every move is a compare-and-set, so of two who decide at once one is told that the other was first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra import refs
from infra.artifacts import ArtifactRef
from infra.errors import StoreError, UsageError
from tasks.evaluation.champion import NAME

if TYPE_CHECKING:
    from infra.artifacts import Manifest
    from infra.refs import RefEntry
    from infra.store import Store

RELEASE = "release "


@dataclass(frozen=True)
class Move:
    """A ref that was moved: from where to where."""

    ref: str
    before: RefEntry | None
    after: RefEntry

    def __str__(self) -> str:
        old = f"{self.before.kind} {self.before.key[:12]} (entry {self.before.number})" if self.before else "nothing"
        return f"{self.ref}: {old} -> {self.after.kind} {self.after.key[:12]} (entry {self.after.number})"


def weights_ref(ref: str) -> str:
    """Name of the ref to the trained model behind what a ref points to."""
    return f"{ref}-weights"


def publish(store: Store, manifest: Manifest) -> None:
    """Publish a committed `release` artifact. Raises as `promote`."""
    release = json.loads((store.fetch(manifest) / "release.json").read_text(encoding="utf-8"))
    promote(store, release, f"{RELEASE}{manifest.digest[:16]}")


def promote(store: Store, release: dict[str, Any], note: str) -> bool:
    """Move the release's ref to its model, once for each release; True if it moved.

    A pipeline that runs again reuses its release. That must not undo a later decision, such as a roll-back by hand, so
    a release that is in the ref's history stays there and moves nothing. Raises StoreError where it was judged against
    a champion that is no longer the one, RefConflict where the ref moves at this very moment.
    """
    name, model = release["ref"], ArtifactRef(**release["model"])
    if any(entry.note == note and entry.artifact == model for entry in refs.history(store, name)):
        return False
    current = refs.get(store, name)
    if NAME in release and current is not None and current.digest not in (release[NAME], model.digest):
        raise StoreError(
            f"{name} was moved to {current.kind} {current.key[:12]} while another champion was being challenged",
            where=f"refs/{name}",
            hint="Run the pipeline again: the challenger is judged against the new champion.",
        )
    if "weights" in release:
        weights = ArtifactRef(**release["weights"])
        if not any(entry.note == note for entry in refs.history(store, weights_ref(name))):
            refs.advance(store, weights_ref(name), weights, note=note)
    refs.set(store, name, model, expected=current.number if current else 0, note=note, force=True)
    return True


def roll_back(store: Store, name: str, to: int | None, reason: str) -> list[Move]:
    """Point a ref, and the weights behind it, to what they pointed to before; returns what was moved.

    to: the entry of the ref's history whose artifact is wanted. None: the newest one that is another artifact. Raises
    UsageError where there is nothing to go back to, RefConflict where somebody moves the ref at this moment.
    """
    moves = refs.history(store, name)
    if not moves:
        raise UsageError(
            f"no ref named {name!r}", hint=f"Refs of this store: {', '.join(refs.names(store)) or 'none'}."
        )
    current = moves[0]
    if to is not None:
        target = next((entry for entry in moves if entry.number == to), None)
    else:
        target = next((entry for entry in moves if entry.artifact != current.artifact), None)
    if target is None:
        known = ", ".join(f"{entry.number} ({entry.kind} {entry.key[:12]})" for entry in moves)
        what = f"{name} has no entry {to}" if to is not None else f"{name} never pointed to anything else"
        raise UsageError(what, hint=f"Its entries: {known}.")
    note = f"rolled back to entry {target.number}" + (f": {reason}" if reason else "")
    found = [_point(store, name, current, target, note)]
    behind = refs.history(store, weights_ref(name))
    weights = next((entry for entry in behind if entry.note == _origin(moves, target).note), None)
    if behind and weights is not None and weights.artifact != behind[0].artifact:
        note = f"rolled back with {name}"
        found.append(_point(store, weights_ref(name), behind[0], weights, note))
    return found


def put_in_place(store: Store, name: str, artifact: ArtifactRef, note: str) -> Move:
    """Point a ref to an artifact by hand, whatever any gate says; the note is kept in its history."""
    before = refs.get(store, name)
    _require_stored(store, artifact)
    expected = before.number if before else 0
    after = refs.set(store, name, artifact, expected=expected, note=note, force=True)
    return Move(name, before, after)


def _point(store: Store, name: str, current: RefEntry, target: RefEntry, note: str) -> Move:
    _require_stored(store, target.artifact)
    after = refs.set(store, name, target.artifact, expected=current.number, note=note, force=True)
    return Move(name, current, after)


def _origin(moves: list[RefEntry], target: RefEntry) -> RefEntry:
    """The release that first put an entry's artifact there: a roll-back's own note names no release."""
    same = [entry for entry in moves if entry.artifact == target.artifact and entry.note.startswith(RELEASE)]
    return same[-1] if same else target


def _require_stored(store: Store, artifact: ArtifactRef) -> None:
    if store.manifest(artifact.kind, artifact.key) is None:
        raise UsageError(
            f"{artifact.kind} {artifact.key[:12]} is no longer in the store",
            hint="Run the pipeline that made it again, or choose another entry.",
        )
