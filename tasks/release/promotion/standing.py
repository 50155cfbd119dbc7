"""Who stands in a ref's history: the moves that were not rolled back, and the champion among them.

A damaged entry is a gap in a history. Whether it was a roll-back is not known, so what came before it is not known to
stand, and to ask for that raises DamagedRef: a person has to say what is the champion.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from infra.refs import DamagedRef, RefEntry

if TYPE_CHECKING:
    from infra.artifacts import ArtifactRef

ROLLED_BACK = "rolled back "
"""How the note of a roll-back begins."""


def standing(history: Sequence[RefEntry]) -> list[RefEntry]:
    """The moves that stand: a roll-back takes away what came after the one it goes back to. Both newest first."""
    kept: list[RefEntry] = []
    for entry in reversed(history):
        if entry.note.startswith(ROLLED_BACK) and any(one.artifact == entry.artifact for one in kept):
            while kept[-1].artifact != entry.artifact:
                kept.pop()
        else:
            kept.append(entry)
    return kept[::-1]


def champion_of(history: Sequence[RefEntry], challengers: Collection[str]) -> RefEntry | None:
    """The newest that stands and is none of the challengers (digests): what they have to beat.

    One that has won already is judged against whom it beat, so a pipeline that runs again finds its verdict. Raises
    DamagedRef.
    """
    found = next((entry for entry in standing(history) if entry.digest not in challengers), None)
    if history:
        # A roll-back to it says that it stood then, whatever a damaged entry before that was.
        stood = (one.number for one in history if found and one.artifact == found.artifact and _says_so(one, found))
        _require_whole(history, max(stood, default=0))
    return found


def _says_so(entry: RefEntry, found: RefEntry) -> bool:
    return entry is found or entry.note.startswith(ROLLED_BACK)


def was_rolled_back(history: Sequence[RefEntry], model: ArtifactRef) -> bool:
    """Whether the ref stood at this model once, and somebody went back behind that and left it there.

    Raises DamagedRef.
    """
    stands = any(entry.artifact == model for entry in standing(history))
    there = [entry.number for entry in history if entry.artifact == model]
    if there and history[0].artifact != model:
        _require_whole(history, there[0])
    return not stands and bool(there)


def _require_whole(history: Sequence[RefEntry], since: int) -> None:
    """Raises DamagedRef where an entry later than `since` is missing."""
    numbers = {entry.number for entry in history}
    gap = next((number for number in range(history[0].number, since, -1) if number not in numbers), None)
    if gap is not None:
        name = history[0].name
        raise DamagedRef(
            f"entry {gap} of {name} is damaged, so which model was the champion before entry {gap + 1} is not known",
            where=f"refs/{name}",
            hint=f"Say which is: forgeline promote {name} MODEL --force --reason TEXT, then run the pipeline again.",
        )
