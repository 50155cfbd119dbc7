"""Watching data: have the sources changed, is what they hold now worth a run, and has that run been started?

What was decided is a journal in the store (`infra/journal.py`), one entry for each state of the sources that came to
rest. Whoever writes an entry starts its run; so two watchers, or a hundred events, start one. Prefect, or any other
starter, is described in `flows/watch.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypedDict

from infra import journal
from infra.artifacts import ArtifactRef, Manifest
from infra.durations import duration_text
from infra.errors import CorruptArtifact
from infra.keys import content_digest
from infra.manifests import undamaged
from infra.refs import Named
from infra.stored_json import StoredJson
from tasks.pipeline.dag import Pipeline
from tasks.pipeline.node import StageNode

if TYPE_CHECKING:
    from infra.store import Store
    from tasks.pipeline.deploy import Watch

LOOKED_AT = 1000
ALPHA = 0.01
SAME_EXAMPLES = "the sources changed, the examples made of them did not"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A decision: on which state of the sources, with which datasets made of them, and why.

    run: number of the entry that started the run on these examples: its own, or, where the sources changed and their
    examples did not, that of an earlier one. at: when that was, in UTC.
    """

    number: int
    sources: str
    datasets: Mapping[str, Named]
    reason: str
    run: int
    at: str

    def dataset(self, store: Store, stage: str) -> Manifest | None:
        """What a stage's dataset was; None where it was not watched, is gone from the store, or is damaged."""
        found = self.datasets.get(stage)
        return undamaged(store, found["kind"], found["key"]) if found else None


class Decision(TypedDict):
    """An `Entry` as it is stored."""

    sources: str
    datasets: dict[str, Named]
    reason: str
    run: int
    at: str


DECISIONS = StoredJson("a decision on new data", Decision, "Nothing to do: the next look decides again.")


@dataclass(frozen=True)
class Worth:
    """Whether new data are worth a run, and the sentence that says why or why not."""

    enough: bool
    reason: str


@dataclass(frozen=True)
class Sources:
    """The state of the sources: the stages that read files, and the digest of those by path and content."""

    stages: tuple[str, ...]
    digest: str


def sources_of(nodes: Sequence[StageNode]) -> Sources:
    """What the stages' sources hold now. Raises StageError on a source that vanished."""
    found = {}
    for node in nodes:
        assert node.stage.sources is not None, "only stages that read files are watched"
        if files := node.stage.sources(node.params):
            found[node.name] = [(f"{node.name}/{file.path}", file.sha256) for file in files]
    return Sources(tuple(found), content_digest(file for files in found.values() for file in files))


def only(pipeline: Pipeline, names: Sequence[str]) -> Pipeline:
    """The pipeline cut down to some stages and what they need."""
    kept: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in kept:
            kept.add(name)
            waiting += pipeline.stages[name].needs
    return replace(pipeline, stages={name: node for name, node in pipeline.stages.items() if name in kept})


def last_entry(store: Store, pipeline: str) -> Entry | None:
    """The newest decision."""
    found = journal.newest(store, f"{pipeline}/watch", DECISIONS)
    return Entry(number=found[0], **found[1]) if found else None


def write_entry(
    store: Store,
    pipeline: str,
    after: Entry | None,
    sources: str,
    datasets: dict[str, ArtifactRef],
    reason: str,
    *,
    same: bool = False,
) -> Entry | None:
    """Add a decision; None where another watcher decided first. same: the examples are those of `after`."""
    number = after.number + 1 if after else 1
    made = {name: Named(kind=ref.kind, key=ref.key, digest=ref.digest, type=ref.type) for name, ref in datasets.items()}
    at = datetime.now(UTC).isoformat("T", "seconds")
    if same and after is not None:
        entry = Entry(number, sources, made, reason, after.run, after.at)
    else:
        entry = Entry(number, sources, made, reason, number, at)
    content = {name: value for name, value in asdict(entry).items() if name != "number"}
    return entry if journal.append(store, f"{pipeline}/watch", number - 1, content, DECISIONS) else None


@dataclass(frozen=True)
class Fresh:
    """What the datasets have that those of the last run had not, of each stage; and how many examples went."""

    rows: dict[str, list[dict[str, Any]]]
    gone: int

    @property
    def count(self) -> int:
        return sum(map(len, self.rows.values()))


def fresh_since(store: Store, last: Entry, datasets: dict[str, ArtifactRef]) -> Fresh:
    """The examples of `datasets` against those of the last decision."""
    from tasks.data.dataset.new_rows import new_rows

    found, gone = {}, 0
    for name, ref in datasets.items():
        manifest, before = store.manifest(ref.kind, ref.key), last.dataset(store, name)
        assert manifest is not None, "it has just been made"
        try:
            found[name] = new_rows(store, manifest, before)
            gone += len(new_rows(store, before, manifest)) if before else 0
        except CorruptArtifact as error:
            if before is None or (error.kind, error.key) != (before.kind, before.key):
                raise
            log.warning("all examples of %s count as new: those before are damaged: %s", name, error.what)
            found[name] = new_rows(store, manifest, None)
    return Fresh(found, gone)


def worth_a_run(
    store: Store, watch: Watch, last: Entry, fresh: Fresh, now: datetime, *, untrained: bool = False
) -> Worth:
    """Are the new data worth a run? Enough new examples, the age of the last run, or drift: one of them is enough.

    untrained: the run for the examples that were new the last time did not do its work, so any change is enough.
    """
    have = f"{fresh.count:,} new example{'s' if fresh.count != 1 else ''}"
    if fresh.gone:
        have += f" and {fresh.gone:,} fewer of the old"
    if fresh.count >= watch.min_new_rows:
        return Worth(True, f"{have}, {watch.min_new_rows:,} are enough")
    if untrained:
        return Worth(True, f"{have}, and those before them were not trained on")
    age = (now - datetime.fromisoformat(last.at)).total_seconds()
    if watch.max_age is not None and age >= watch.max_age:
        return Worth(
            True,
            f"{have}, and the last run is {duration_text(round(age))} old ({duration_text(watch.max_age)} are enough)",
        )
    drifted = _drift(store, last, fresh.rows) if watch.drift else []
    if drifted:
        return Worth(True, f"{have}, which differ from those before: {'; '.join(drifted)}")
    older = f", a run {duration_text(watch.max_age)} old" if watch.max_age is not None else ""
    drift = ", or drift" if watch.drift else ""
    return Worth(False, f"{have}; {watch.min_new_rows:,}{older}{drift} would be enough")


def _drift(store: Store, last: Entry, fresh: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What differs between the new examples and those the last run had, of each dataset with enough of both."""
    from tasks.data.dataset.layout import stored_files
    from tasks.data.dataset.new_rows import rows
    from tasks.data.drift.difference import sample
    from tasks.data.drift.differences import differences
    from tasks.stages.compare import Sizes

    found = []
    for name, new in fresh.items():
        before = last.dataset(store, name)
        if before is None or len(new) < 20:
            continue
        old = list(rows(store, before, [entry.path for _, entry in stored_files(before)]))
        if len(old) < 20:
            continue
        chosen = [sample(one, LOOKED_AT, lambda row: str(row["id"])) for one in (old, new)]
        judged = differences(chosen[0], chosen[1], alpha=ALPHA, sizes=Sizes().model_dump(), seed=0)
        found += [f"{one.name} of {name} ({one.told})" for one in judged if one.drifted]
    return found
