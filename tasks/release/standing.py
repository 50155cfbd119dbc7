"""Who stands in a ref's history: the moves that were not rolled back, and the champion among them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infra.artifacts import ArtifactRef
    from infra.refs import RefEntry

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

    One that has won already is judged against whom it beat, so a pipeline that runs again finds its verdict.
    """
    return next((entry for entry in standing(history) if entry.digest not in challengers), None)


def was_rolled_back(history: Sequence[RefEntry], model: ArtifactRef) -> bool:
    """Whether the ref stood at this model once, and somebody went back behind that and left it there."""
    stands = any(entry.artifact == model for entry in standing(history))
    return not stands and any(entry.artifact == model for entry in history)
