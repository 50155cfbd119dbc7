"""Moving a ref to what was released, and back. Publishing runs in the orchestrator, after the release is committed.

    reviews/production            what was released
    reviews/production-weights    the trained model behind it, which the next training begins from

Two refs cannot move as one. A release moves its own first, so that nobody goes on from weights of which nothing was
released, and the next run moves the other if this one dies in between. A move by hand takes the weights first, so that
whoever sees it half done repeats the command. Both know what they expect of both refs before they move one, and a move
by hand leaves an entry even where it changes nothing: of two who meet, one learns it.

Nobody moves a ref to bytes that do not verify: before a ref moves, every file of what it will name is read in the store
itself and compared with its manifest.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra import refs
from infra.artifacts import ArtifactRef
from infra.errors import CorruptArtifact, InputChanged, UsageError
from infra.refs import RefConflict
from infra.stored_bytes import artifact_faults
from tasks.evaluation.champion import NAME
from tasks.release.promotion.standing import ROLLED_BACK, champion_of, standing, was_rolled_back

if TYPE_CHECKING:
    from infra.artifacts import Manifest
    from infra.refs import RefEntry
    from infra.store import Store

RELEASE = "release "
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Move:
    """A ref that was moved: from where to where."""

    ref: str
    before: RefEntry | None
    after: RefEntry

    def __str__(self) -> str:
        nothing = "nothing" if self.after.number == 1 else f"entry {self.after.number - 1}, which is damaged,"
        old = f"{self.before.kind} {self.before.key[:12]} (entry {self.before.number})" if self.before else nothing
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
    a release that is in the ref's history moves nothing, nor does a new release of a model that was rolled back. Two
    runs that publish the same release at once move it once. Raises RefConflict where it was judged against a champion
    that is no longer the one, or another release moves the ref at this very moment; and as `require_verified`.
    """
    while True:
        try:
            return _promote(store, release, note)
        except RefConflict:
            moved = refs.past(store, release["ref"]), refs.past(store, weights_ref(release["ref"]))
            if not any(entry.note == note for past in moved for entry in past.entries[:1]):
                raise


def _promote(store: Store, release: dict[str, Any], note: str) -> bool:
    name, model = release["ref"], ArtifactRef(**release["model"])
    history = refs.history(store, name)
    behind = refs.past(store, weights_ref(name))
    moves = not history or history[0].artifact != model
    if moves:
        if any(entry.note == note and entry.artifact == model for entry in history):
            return False
        if was_rolled_back(history, model):
            log.warning("%s was rolled back from this model and stays where it is: forgeline promote moves it", name)
            return False
        _require_beaten(release, history)
        require_verified(store, model, name)
        refs.set(store, name, model, expected=_number(history), note=note)
    if "weights" in release and not any(entry.note == note for entry in behind.entries):
        weights = ArtifactRef(**release["weights"])
        require_verified(store, weights, weights_ref(name))
        if behind.number and behind.newest is None:
            log.warning(
                "entry %d of %s was damaged; it points to the weights of %s again",
                behind.number,
                weights_ref(name),
                name,
            )
        refs.set(store, weights_ref(name), weights, expected=behind.number, note=note, force=True)
    return moves


def _require_beaten(release: dict[str, Any], history: Sequence[RefEntry]) -> None:
    """Raises RefConflict where another would have to be beaten now than when the verdict was passed."""
    if NAME not in release:
        return
    now = champion_of(history, release[NAME]["challengers"])
    if (now.digest if now else None) != release[NAME]["digest"]:
        raise RefConflict(
            f"it was moved to {history[0].kind} {history[0].key[:12]} while another champion was being challenged",
            where=f"refs/{release['ref']}",
            hint="Run the pipeline again: the challenger is judged against the new champion.",
        )


def roll_back(store: Store, name: str, to: int | None, reason: str) -> list[Move]:
    """Point a ref, and the weights behind it, to what they pointed to before; returns what was moved.

    to: the entry of the ref's history whose artifact is wanted. None: the one before it, of those that were not rolled
    back themselves, so that doing it again goes further back. Raises UsageError where there is nothing to go back to,
    RefConflict where somebody moves the ref at this moment, and as `require_verified`.
    """
    past, behind = refs.past(store, name), refs.past(store, weights_ref(name))
    history = past.entries
    if not past.number:
        raise UsageError(
            f"no ref named {name!r}", hint=f"Refs of this store: {', '.join(refs.names(store)) or 'none'}."
        )
    among = standing(history) if to is None else [entry for entry in history if entry.number == to]
    now = past.newest.artifact if past.newest else None
    target = next((entry for entry in among if entry.artifact != now), None)
    if target is None:
        known = ", ".join(f"{entry.number} ({entry.kind} {entry.key[:12]})" for entry in history)
        what = f"{name} has no entry {to}" if to is not None else f"{name} stood at nothing else before"
        what = f"{name} is at the artifact of entry {to} already" if to is not None and among else what
        hint = f"Its entries: {known}. `--to N` goes to any of them."
        raise UsageError(what, hint=hint if known else f"Its entries are damaged: forgeline promote {name} MODEL.")
    note = f"{ROLLED_BACK}to entry {target.number}" + (f": {reason}" if reason else "")
    return _by_hand(store, name, target.artifact, note, past, behind)


def put_in_place(store: Store, name: str, artifact: ArtifactRef, note: str) -> list[Move]:
    """Point a ref to an artifact, whatever any gate says, and the weights behind it where a release of it names them.

    Raises RefConflict where somebody moves the ref at this moment, and as `require_verified`.
    """
    return _by_hand(store, name, artifact, note, refs.past(store, name), refs.past(store, weights_ref(name)))


def require_verified(store: Store, artifact: ArtifactRef, ref: str) -> None:
    """Read every byte of what `ref` is to point to. Raises as below, and then the ref stays where it is.

    InputChanged: it is gone, or what stands there has other content by now. CorruptArtifact: manifest and bytes differ.
    """
    manifest, called = store.manifest(artifact.kind, artifact.key), f"{artifact.kind} {artifact.key[:12]}"
    if manifest is None or manifest.digest != artifact.digest:
        now = f"holds other content ({manifest.digest[:12]}) than is meant" if manifest else "is no longer in the store"
        raise InputChanged(
            f"{called} {now}, so {ref} stays where it is",
            where=artifact.prefix,
            hint="It was made again or collected since. Run its pipeline again, or choose another one.",
        )
    if found := artifact_faults(store, manifest):
        raise CorruptArtifact(
            f"{called} is damaged ({'; '.join(found[:3])}), so {ref} stays where it is",
            kind=artifact.kind,
            key=artifact.key,
            attempt=manifest.attempt,
            hint=f"forgeline verify {artifact.kind}/{artifact.key[:12]} --set-aside, then run its pipeline again: that "
            "makes it again. Or choose another one.",
        )


def _by_hand(
    store: Store,
    name: str,
    artifact: ArtifactRef,
    note: str,
    past: refs.Past,
    behind: refs.Past,
) -> list[Move]:
    releases = {one.note for one in past.entries if one.artifact == artifact and one.note.startswith(RELEASE)}
    weights = next((entry.artifact for entry in behind.entries if entry.note in releases), None)
    wanted = [(weights_ref(name), weights, behind)] if weights else []
    wanted.append((name, artifact, past))
    for ref, to, _ in wanted:
        if store.manifest(to.kind, to.key) is None:
            raise UsageError(
                f"{to.kind} {to.key[:12]} is no longer in the store",
                hint="Run the pipeline that made it again, or choose another entry.",
            )
        require_verified(store, to, ref)
    moves = []
    for ref, to, before in wanted:
        after = refs.set(store, ref, to, expected=before.number, note=note, force=True)
        moves.append(Move(ref, before.newest, after))
    return moves[::-1]


def _number(history: Sequence[RefEntry]) -> int:
    return history[0].number if history else 0
