"""What a champion was judged on, so that it and its challenger are judged on that again, and on what is new apart.

The champion's own lineage names the dataset it was trained on; that one's split of the same name is what it was judged
on. An example is `known` if its id or its text was there; the rest is `new`. Both are slices of `since`, which a gate
asks about as of any other: `f1_macro[since=known]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from infra import refs
from infra.errors import StageError
from tasks.data.dataset.layout import stored_files
from tasks.data.dataset.new_rows import passing, rows
from tasks.models.card import read_card

if TYPE_CHECKING:
    from infra.artifacts import Manifest
    from infra.store import Store
    from tasks.stage import InputArtifact

SINCE, KNOWN, NEW = "since", "known", "new"
NAME = "champion"


@dataclass(frozen=True)
class Since:
    """`mask` [N]: whether the champion was judged on an example. `reason`: a sentence on how that was found."""

    mask: npt.NDArray[np.bool_]
    reason: str

    @property
    def masks(self) -> dict[str, npt.NDArray[np.bool_]]:
        """The slices that have examples."""
        return {name: mask for name, mask in ((KNOWN, self.mask), (NEW, ~self.mask)) if mask.any()}


def about(
    store: Store, ref: str, champion: Manifest | None, challengers: Sequence[Manifest], since: Since | None
) -> dict[str, Any]:
    """What scores say of the champion: its entry of the ref, which model it was compared with, what it had seen."""
    found: dict[str, Any] = {"ref": ref, "there": champion is not None, "told": since.reason if since else ""}
    found["challengers"] = [one.digest for one in challengers]
    if champion is not None:
        entry = next((one for one in refs.history(store, ref) if one.artifact == champion.ref), None)
        found |= {"entry": entry.number if entry else None, **asdict(champion.ref)}
    return found | {name: int(mask.sum()) for name, mask in since.masks.items()} if since else found


def sentence(champion: Mapping[str, Any]) -> str:
    """What scores and verdicts say of the champion, for people."""
    if not champion.get("there"):
        return f"{champion.get('ref')} pointed to no model yet, so nothing had to be beaten."
    made = f"{champion.get('kind')} {str(champion.get('key'))[:12]}"
    which = f"entry {champion.get('entry')} of {champion.get('ref')} ({made})"
    return f"The champion is {which}; {champion['told']}." if champion.get("told") else f"The champion is {which}."


def same_label_map(champion: InputArtifact, other: InputArtifact) -> None:
    """Raises StageError where the champion knows other classes than a challenger does."""
    theirs, mine = read_card(champion.path).labels, read_card(other.path).labels
    if sorted(theirs or []) != sorted(mine or []):
        raise StageError(
            f"the champion knows the labels {theirs}, and {other.stage!r} knows {mine}",
            where=NAME,
            hint="They cannot be judged on the same examples. Begin a new ref for models of the new labels, or leave "
            "`champion` out until the first of them is promoted.",
        )


def judged_before(store: Store, champion: Manifest, data: InputArtifact, split: str) -> Since:
    """Which examples of a split the champion was judged on.

    Raises StageError where its dataset is no longer in the store, or had examples that are not in this split any more.
    """
    from tasks.data.dataset.split import read_split

    ids = read_split(data, split, columns=("id",))["id"]
    found = next((item for item in _lineage(store, champion) if item["stage"] == data.stage), None)
    if found is None:
        return Since(np.ones(len(ids), bool), f"{data.stage!r} is not in the champion's lineage: all count as known")
    if found["digest"] == data.manifest.digest:
        return Since(np.ones(len(ids), bool), "the champion was judged on these very examples")
    before = store.manifest(found["kind"], found["key"])
    if before is None:
        raise StageError(
            f"the dataset the champion was judged on ({found['kind']} {found['key'][:12]}) is no longer in the store",
            where=NAME,
            hint="Restore it, or promote a new champion by hand: forgeline promote REF MODEL --force --reason ...",
        )
    if _test_version(before) != _test_version(data.manifest):
        return Since(np.zeros(len(ids), bool), "the test split was begun again (`test_version`): all examples are new")
    both = passing(store, before) & passing(store, data.manifest)
    theirs = list(rows(store, before, _files(before, split), both))
    mine = list(rows(store, data.manifest, _files(data.manifest, split), both))
    contents, names = {row["content"] for row in mine}, {row["id"] for row in mine}
    gone = [row["id"] for row in theirs if row["id"] not in names and row["content"] not in contents]
    if gone:
        raise StageError(
            f"{len(gone)} of the {len(theirs)} examples the champion was judged on are not in {data.stage}.{split}: "
            f"{', '.join(gone[:3])}",
            where=NAME,
            hint="Bring them back, or raise `split.test_version` of the dataset to begin a new test split.",
        )
    known_ids, known = {row["id"] for row in theirs}, {row["content"] for row in theirs}
    place = {row["id"]: row["id"] in known_ids or row["content"] in known for row in mine}
    return Since(np.array([place[name] for name in ids]), f"of the {len(ids)} examples {sum(place.values())} are known")


def _files(data: Manifest, split: str) -> list[str]:
    return [entry.path for _, entry in stored_files(data, [split])]


def _test_version(data: Manifest) -> Any:
    return data.identity.get("params", {}).get("split", {}).get("test_version")


def _lineage(store: Store, artifact: Manifest) -> Iterator[dict[str, Any]]:
    """What an artifact was made of, nearest first, as far as the store has it."""
    waiting, seen = [artifact], set[str]()
    while waiting:
        items = [item for manifest in waiting for items in manifest.inputs.values() for item in items]
        yield from items
        seen |= {manifest.key for manifest in waiting}
        found = (store.manifest(item["kind"], item["key"]) for item in items if item["key"] not in seen)
        waiting = [manifest for manifest in found if manifest is not None]
