"""Inputs that depend on what a ref pointed to before: a champion to beat, weights to go on from.

Both are chosen so that a pipeline whose data did not change finds all it made again, though its own release has moved
the refs meanwhile:

- `champion: reviews/production` is the newest model of that ref which is none of those it is compared with. After a
  promotion that is the model the new one was judged against, so the evaluation is the one that was made.
- `model: "ref:reviews/production-weights or base"` is what the ref points to, unless this very stage made that of what
  it has now: then it is what that was made from, and the stage is not run again to go on from itself.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra import refs
from infra.artifacts import ArtifactRef

if TYPE_CHECKING:
    from infra.store import Store
    from tasks.stage import InputField

REMEMBERED = 20
"""Moves of a ref that are looked at."""


@dataclass(frozen=True)
class Past:
    """What a ref points to, or did; `made_from`: the keys of all it was made from and its own."""

    artifact: ArtifactRef
    made_from: frozenset[str]


class Known(dict[str, ArtifactRef]):
    """Artifacts by the name of their stage or `ref:NAME`; `past`: what those refs pointed to, newest first."""

    def __init__(self) -> None:
        super().__init__()
        self.past: dict[str, list[Past]] = {}


def past_of(store: Store, name: str) -> list[Past]:
    """What a ref pointed to, newest first, each artifact once."""
    found = dict.fromkeys(entry.artifact for entry in refs.history(store, name)[:REMEMBERED])
    return [Past(artifact, frozenset(_lineage(store, artifact))) for artifact in found]


def champion(item: InputField, known: dict[str, ArtifactRef], others: Collection[ArtifactRef]) -> ArtifactRef | None:
    """The newest model of the ref that is none of `others`, by content; None before there is one."""
    past = known.past.get(item.stage, []) if isinstance(known, Known) else []
    compared = {other.digest for other in others}
    return next((one.artifact for one in past if one.artifact.digest not in compared), None)


def options(item: InputField, known: dict[str, ArtifactRef]) -> list[tuple[ArtifactRef, InputField]]:
    """What `ref:NAME or STAGE` may be, in the order of preference, each with the input as it is then named."""
    from dataclasses import replace

    past = known.past.get(item.stage, []) if isinstance(known, Known) else []
    found = [(one.artifact, replace(item, text=item.stage)) for one in past]
    if item.fallback in known:
        found.append((known[item.fallback], replace(item, text=item.fallback)))
    return found


def already_made(item: InputField, known: dict[str, ArtifactRef], key: str) -> bool:
    """Whether what the ref points to now was made from what a stage would make under this key."""
    past = known.past.get(item.stage, []) if isinstance(known, Known) else []
    return bool(past) and key in past[0].made_from


def _lineage(store: Store, artifact: ArtifactRef) -> set[str]:
    """Keys of an artifact and of all it was made from, as far as the store has them."""
    found: set[str] = set()
    waiting = [(artifact.kind, artifact.key)]
    while waiting:
        kind, key = waiting.pop()
        if key in found:
            continue
        found.add(key)
        manifest = store.manifest(kind, key)
        if manifest is not None:
            waiting += [(item["kind"], item["key"]) for items in manifest.inputs.values() for item in items]
    return found
