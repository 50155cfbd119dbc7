"""What of a store may go: a pure function of a census.

Needed is what a ref or a kept run names (`infra/census.py`), what that was made from, and what is being made. Parts of
data are named by no manifest, so they are followed by content: a part is needed if a needed artifact has one of its
files, or if the identity of a needed part names one; so `rows` keep the `prepared` shard they were taken from. A frozen
test split is the same file in each generation of a shard's rows; only those that have the train split in use too are
meant. A shard of which no row was chosen is kept if the needed datasets read its files and keep others prepared in the
same way; else data that bring nothing new would be prepared again each time.

All else goes in steps, each once it is older than the grace:

1. the manifest of an artifact moves to `trash/`, so that no run reuses it; needed again, it is put back;
2. it leaves the trash;
3. what no manifest names is removed: attempts, shared files, checkpoints nobody went on from, what was set aside.

What somebody works on is left alone. While a stage that shares files is at work anywhere, so are parts and shared
files: its manifest, which will name them, is yet to come. `forgeline prepare` holds no claim: its parts have the grace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from infra.artifacts import DIGEST, Manifest
from infra.census import Attempt, Census, Keep, Pile
from infra.errors import StoreError
from infra.keys import digest
from infra.lineage import Id, SourceFile, is_part, links

ReadSources = Callable[[Manifest], tuple[SourceFile, ...]]


@dataclass(frozen=True)
class Item:
    """Something that goes: a store path (a folder's ends with `/`), what of which kind, how large, and why."""

    path: str
    what: str
    kind: str
    bytes: int
    why: str


@dataclass
class Plan:
    """What goes, by step, and what is put back out of the trash. `kept`: needed artifacts, with the reason.

    waits: why parts and shared files stay for now. stays: why all artifacts do. notes: what could not be read.
    """

    kept: dict[Id, str]
    to_trash: list[Item] = field(default_factory=list)
    from_trash: list[Item] = field(default_factory=list)
    files: list[Item] = field(default_factory=list)
    put_back: list[str] = field(default_factory=list)
    waits: str = ""
    stays: str = ""
    notes: list[str] = field(default_factory=list)

    def items(self) -> list[Item]:
        return [*self.to_trash, *self.from_trash, *self.files]


def decide(census: Census, keep: Keep, read_sources: ReadSources, *, ahead: bool = False) -> Plan:
    """What goes and what is put back, of the store as it was seen.

    ahead: what leaves the trash counts as gone already, so that its files are in the plan too; to look at, not to do.
    Where the manifest of something needed is damaged, what it was made from is not known, so no artifact goes. Raises
    StoreError where a ref of people names nothing, and a model would go that may be the one it should name.
    """
    known = {**{(m.kind, m.key): m for m in census.trash.values()}, **census.live}
    kept = _kept(census, known, read_sources)
    plan = Plan(kept, waits=who_shares(census), notes=census.notes)
    if damaged := sorted(kept.keys() & census.unreadable):
        kind, key = damaged[0]
        plan.stays = (
            f"the manifest of {kind} {key[:12]} is damaged, so what it was made from is not known ({kept[kind, key]}); "
            "run its pipeline again: it is quarantined and made again"
        )
    oldest = census.now - keep.grace

    def old(path: str) -> bool:
        return census.objects[path].modified < oldest

    for id, manifest in census.live.items():
        path = f"{manifest.ref.prefix}/manifest.json"
        waits = plan.stays or (plan.waits and is_part(manifest))
        if id not in kept and id not in census.held and old(path) and not waits:
            size = _size(census, manifest)
            plan.to_trash.append(Item(path, "artifact", id[0], size, "no ref, run or artifact that is kept needs it"))
    leaving: list[Manifest] = []
    for path, manifest in census.trash.items():
        id = (manifest.kind, manifest.key)
        standing = census.live.get(id)
        if id in kept and standing is None and id not in census.unreadable and known[id] is manifest:
            plan.put_back.append(path)
        elif standing is not None and standing.attempt == manifest.attempt:
            # Its move was cut short: it is still to be reused. Needed, only the note goes; else it is moved again.
            if id in kept:
                plan.from_trash.append(Item(path, "trash", id[0], 0, "it stands"))
        elif old(path) and not plan.stays and not (plan.waits and is_part(manifest)):
            plan.from_trash.append(Item(path, "trash", id[0], 0, "it was there for the grace"))
            leaving.append(manifest)
    for path in census.damaged_trash:
        if old(path) and not plan.stays:
            plan.from_trash.append(Item(path, "trash", path.split("/")[1], census.objects[path].size, "it is damaged"))
    _require_names(census, plan)
    staying = [manifest for manifest in census.trash.values() if not ahead or manifest not in leaving]
    plan.files += _loose_files(census, staying, oldest, plan.waits)
    plan.files += _loose_checkpoints(census, kept, oldest)
    return plan


def _require_names(census: Census, plan: Plan) -> None:
    """Raises StoreError where a ref names nothing, and a model would go."""
    going = {tuple(item.path.split("/")[1:3]) for item in (*plan.to_trash, *plan.from_trash)}
    models = [id for id in census.models() if id in going]
    if census.nameless and models:
        name, why = min(census.nameless.items())
        kind, key = min(models)
        raise StoreError(
            f"{kind} {key[:12]} would go, and may be the model that {name} should name", where=f"refs/{name}", hint=why
        )


def _kept(census: Census, known: dict[Id, Manifest], read_sources: ReadSources) -> dict[Id, str]:
    """Every needed artifact with the reason: its root, or what was made from it."""
    kept: dict[Id, str] = {}
    todo = [*census.needed.items(), *((id, "it is being made") for id in census.held)]
    while todo:
        id, why = todo.pop()
        if id not in kept:
            kept[id] = why
            if id in known:
                todo += [(link.to, f"{id[0]} {id[1][:12]} was made from it") for link in links(known[id])]
    parts = {id: manifest for id, manifest in known.items() if is_part(manifest) and id not in kept}
    if parts:
        _keep_parts(parts, [known[id] for id in kept if id in known], kept, read_sources)
    return kept


def _keep_parts(
    parts: dict[Id, Manifest], needed: list[Manifest], kept: dict[Id, str], read_sources: ReadSources
) -> None:
    having: dict[str, list[Id]] = {}
    for id, part in parts.items():
        for entry in part.payload:
            having.setdefault(entry.sha256, []).append(id)
    named = {entry.sha256 for manifest in needed for entry in manifest.payload if entry.shared}
    found = [manifest for manifest in needed if is_part(manifest)]
    ways: set[str] = set()
    while True:
        named |= {sha for part in found for sha in _digests(part.identity)}
        used = {id: frozenset(e.sha256 for e in part.payload if e.sha256 in named) for id, part in parts.items()}
        fresh = [id for id, of in used.items() if of and id not in kept and not _outdone(id, used, having)]
        if not fresh:
            break
        found = [parts[id] for id in fresh]
        ways |= {_way(part) for part in found}
        kept |= dict.fromkeys(fresh, "an artifact that is kept has its files")
    others = [id for id, part in parts.items() if id not in kept and "files" in part.identity and _way(part) in ways]
    if others:
        read = {file.sha256 for manifest in needed for file in read_sources(manifest)}
        for id in others:
            if set(_digests(parts[id].identity["files"])) <= read:
                kept[id] = "datasets that are kept read its files"


def _outdone(id: Id, used: dict[Id, frozenset[str]], having: dict[str, list[Id]]) -> bool:
    """Whether another part of the kind has all its files that are named, and more of them: then it is not meant."""
    return any(other[0] == id[0] and used[id] < used[other] for sha in used[id] for other in having[sha])


def _way(part: Manifest) -> str:
    """How a part was made, whatever it was made of."""
    return digest([part.kind, {name: value for name, value in part.identity.items() if name != "files"}])


def _digests(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if DIGEST.fullmatch(value):
            yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _digests(inner)


def who_shares(census: Census) -> str:
    """Why parts and shared files have to wait, or "": a manifest that may name them is yet to come, or is damaged."""
    if census.unreadable:
        kind, key = min(census.unreadable)
        return f"the manifest of {kind} {key[:12]} is damaged, so which files it names is not known"
    manifests = [*census.live.values(), *census.trash.values()]
    never_shared = {m.kind for m in manifests} - {m.kind for m in manifests if any(e.shared for e in m.payload)}
    at_work = sorted(kind for kind, _ in census.held if kind not in never_shared)
    return f"a stage of kind {at_work[0]} is at work" if at_work else ""


def _loose_files(census: Census, trash: list[Manifest], oldest: float, waits: str) -> Iterator[Item]:
    """Attempts, shared files and set-aside manifests that no manifest names, be it in its place or in the `trash`."""
    manifests = [*census.live.values(), *trash]
    named: set[Attempt] = {(m.kind, m.key, m.attempt) for m in manifests}
    shas = {entry.sha256 for m in manifests for entry in m.payload if entry.shared}
    for path, entry in census.objects.items():
        top, *rest = path.split("/")
        old = entry.modified < oldest
        if top == "files" and rest[0] not in shas and old and not waits:
            yield Item(path, "shared file", "files", entry.size, "no manifest names it")
        elif top == "quarantine" and old:
            yield Item(path, "set aside", rest[0], entry.size, "it was set aside as damaged")
        elif top == "quarantine" and len(rest) == 4:
            named.add((rest[0], rest[1], rest[2].rpartition("-")[0]))
        elif path in census.damaged_trash and len(rest) == 4:
            named.add((rest[0], rest[1], rest[2]))
    for (kind, key, attempt), pile in census.attempts.items():
        watched = (kind, key) in census.held or (kind, key) in census.unreadable
        if (kind, key, attempt) not in named and pile.newest < oldest and not watched:
            yield Item(f"artifacts/{kind}/{key}/{attempt}/", "attempt", kind, pile.bytes, "no manifest names it")


def _loose_checkpoints(census: Census, kept: dict[Id, str], oldest: float) -> Iterator[Item]:
    """Checkpoints that no training run will resume from. Those that a kept artifact keeps for good stay."""
    for id, pile in census.checkpoints.items():
        made = census.live.get(id)
        if pile.newest >= oldest or id in census.held or (made and id in kept and _for_good(made)):
            continue
        why = "the stage is done" if made else "no run went on from it"
        yield Item(f"checkpoints/{id[0]}/{id[1]}/", "checkpoint", id[0], pile.bytes, why)


def _for_good(manifest: Manifest) -> bool:
    checkpoint = (manifest.producer.get("execution") or {}).get("checkpoint") or {}
    return bool(checkpoint.get("permanent_every"))


def _size(census: Census, manifest: Manifest) -> int:
    """Bytes of the artifact's own; shared files count when they go themselves."""
    return census.attempts.get((manifest.kind, manifest.key, manifest.attempt), Pile()).bytes
