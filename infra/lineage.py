"""Where an artifact comes from: a graph of the manifests it was made from, read out of a store.

    graph = ancestors(store, start)                         # every artifact `start` was made from, and `start`
    before = previous(store, "mails/production", start)     # what the ref pointed to before
    changes(graph, ancestors(store, before))                # params and source files that differ, artifact by artifact

An edge is an input as the manifest recorded it when the stage ran. A stage that was reused because another input turned
out to have the same bytes (early cut-off) keeps the edge to what it was really made from.

The parts of data stages (`prepared`, `rows`, `ids`, `runs`) are artifacts that no stage made, so they have no producer.
No manifest names them as inputs: a dataset shares their files by content, and names its source files itself in
`records/sources.json`. So they are left out here; `infra/garbage.py` follows them by content.

Nothing here is drawn or printed. An artifact that was collected, or whose manifest is damaged, is a node without a
manifest that says what is wrong; a cycle, which only tampering can make, ends a walk.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from infra import refs
from infra.artifacts import Manifest
from infra.config_check import did_you_mean
from infra.errors import StoreError, StoreUnreachable, UsageError
from infra.store import Store

Id = tuple[str, str]
"""Kind and key of an artifact."""
SOURCES = "sources.json"
LOOKUPS = 8


@dataclass(frozen=True)
class Link:
    """One input of an artifact: the field of the stage's params, what it names, and with which content it went in."""

    field: str
    to: Id
    digest: str = ""
    stage: str = ""
    split: str = ""


@dataclass(frozen=True)
class SourceFile:
    """A file from outside the store that went into a dataset: path below its source, sha256 hex."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Node:
    """One artifact. `problem` says why there is no `manifest` (gone, damaged), or why its `sources` are unknown."""

    id: Id
    manifest: Manifest | None
    problem: str = ""
    links: tuple[Link, ...] = ()
    sources: tuple[SourceFile, ...] = ()

    @property
    def stage(self) -> str:
        """The name of the stage that made it, as far as that is known."""
        return str(self.manifest.producer.get("stage") or "") if self.manifest else ""


@dataclass(frozen=True)
class Graph:
    """Artifacts by kind and key. Links may lead out of it."""

    nodes: dict[Id, Node] = field(default_factory=dict)

    def above(self, node: Node) -> list[Node]:
        """What it was made from, each once."""
        return [self.nodes[to] for to in dict.fromkeys(link.to for link in node.links) if to in self.nodes]

    def below(self, starts: Iterable[Id]) -> Graph:
        """`starts` and everything that was made from them, directly or through others."""
        made_of: dict[Id, list[Id]] = {}
        for node in self.nodes.values():
            for link in node.links:
                made_of.setdefault(link.to, []).append(node.id)
        found: dict[Id, Node] = {}
        todo = [start for start in starts if start in self.nodes]
        while todo:
            here = todo.pop()
            if here not in found:
                found[here] = self.nodes[here]
                todo += made_of.get(here, [])
        return Graph({id: node for id, node in self.nodes.items() if id in found})


@dataclass(frozen=True)
class Change:
    """What differs from the artifact before: a param (dotted path), `stage version`, or `source files`."""

    name: str
    before: Any
    now: Any


def links(manifest: Manifest) -> tuple[Link, ...]:
    """The inputs a manifest names; what is garbled in it is left out."""
    found = []
    for name, items in manifest.inputs.items():
        for item in items if isinstance(items, list) else [items]:
            if isinstance(item, dict) and item.get("kind") and item.get("key"):
                rest = (str(item.get(part) or "") for part in ("digest", "stage", "split"))
                found.append(Link(str(name), (str(item["kind"]), str(item["key"])), *rest))
    return tuple(found)


def is_part(manifest: Manifest) -> bool:
    """Whether it is a part of data (`tasks/data/parts/parts.py`): no stage made it, and all its files are shared."""
    return not manifest.producer and all(entry.shared for entry in manifest.payload)


def read(store: Store, id: Id, *, sources: bool = True) -> Node:
    """One artifact as a node. Raises only StoreUnreachable."""
    try:
        manifest = store.manifest(*id)
        if manifest is None:
            return Node(id, None, "not in the store: collected, or never committed here")
    except StoreUnreachable:
        raise
    except StoreError as error:
        return Node(id, None, f"damaged: {error.what}")
    try:
        files = read_sources(store, manifest) if sources else ()
        return Node(id, manifest, "", links(manifest), files)
    except StoreUnreachable:
        raise
    except StoreError as error:
        return Node(id, manifest, f"its source files are unknown: {error.what}", links(manifest))


def read_sources(store: Store, manifest: Manifest) -> tuple[SourceFile, ...]:
    """The source files a dataset was made from; none for anything else. Raises StoreError on damaged records."""
    if not any(entry.path == SOURCES for entry in manifest.records):
        return ()
    folder = store.fetch_records(manifest)
    assert folder is not None, "it has a record"
    try:
        listed = json.loads((folder / SOURCES).read_text(encoding="utf-8"))
        return tuple(SourceFile(str(path), str(sha)) for path, sha in listed)
    except (ValueError, TypeError) as error:
        raise StoreError(f"{SOURCES} is not a list of paths and digests ({error})", where=str(folder)) from error


def ancestors(store: Store, start: Id) -> Graph:
    """`start` and everything it was made from, down to the source files."""
    nodes: dict[Id, Node] = {}
    todo = [start]
    while todo:
        with ThreadPoolExecutor(LOOKUPS, thread_name_prefix="lineage") as pool:
            found = list(pool.map(lambda id: read(store, id), todo))
        nodes |= {node.id: node for node in found}
        todo = list(dict.fromkeys(link.to for node in found for link in node.links if link.to not in nodes))
    return Graph(nodes)


def whole(store: Store, *, sources: bool = True) -> Graph:
    """Every artifact of a store that a stage made."""
    ids = [(kind, key) for kind in store.list("artifacts") for key in store.list(f"artifacts/{kind}")]
    with ThreadPoolExecutor(LOOKUPS, thread_name_prefix="lineage") as pool:
        nodes = list(pool.map(lambda id: read(store, id, sources=sources), ids))
    return Graph({node.id: node for node in nodes if node.manifest is not None and not is_part(node.manifest)})


def find(store: Store, text: str) -> tuple[Id, str]:
    """The artifact that `text` means, and the ref that has its history: a ref's name, or KIND/KEYPREFIX.

    For a key the ref is `latest` of the stage that made it, or "" where there is none. Raises UsageError.
    """
    entry = refs.get(store, text) if refs.is_name(text) else None
    if entry is not None:
        return (entry.kind, entry.key), text
    kind, _, prefix = text.partition("/")
    keys = [key for key in store.list(f"artifacts/{kind}") if key.startswith(prefix)] if kind and prefix else []
    if len(keys) != 1:
        many = f"{len(keys)} artifacts begin like that: {', '.join(key[:16] for key in keys[:4])}"
        hint = many if keys else did_you_mean(text, refs.names(store)) or "This store holds no refs yet."
        raise UsageError(f"no ref or artifact {text!r}", hint=hint)
    id = (kind, keys[0])
    manifest = read(store, id, sources=False).manifest
    made_by = [str(manifest.producer.get(part) or "") for part in ("pipeline", "stage")] if manifest else []
    return id, "/".join([*made_by, "latest"]) if made_by and all(made_by) else ""


def previous(store: Store, ref: str, id: Id) -> Id | None:
    """What the ref pointed to before `id`: the newest older entry of the same kind; None if there is none."""
    history = [(entry.kind, entry.key) for entry in refs.past(store, ref).entries] if ref else []
    older = history[history.index(id) + 1 :] if id in history else []
    return next((other for other in older if other != id and other[0] == id[0]), None)


def changes(now: Graph, start: Id, before: Graph, start_before: Id) -> dict[Id, list[Change]]:
    """What differs between two lineages, for each artifact of `now` that has a counterpart in `before`.

    Counterparts are found from the top: what stood in the same place of the same field. Equal artifacts are left out.
    """
    found: dict[Id, list[Change]] = {}
    pairs, seen = [(start, start_before)], set[Id]()
    while pairs:
        here, there = pairs.pop()
        new, old = now.nodes.get(here), before.nodes.get(there)
        if here in seen or here == there or not (new and old and new.manifest and old.manifest):
            continue
        seen.add(here)
        found[here] = [*_param_changes(new.manifest, old.manifest), *_source_changes(new, old)]
        for name in dict.fromkeys(link.field for link in new.links):
            ours, theirs = ([link.to for link in node.links if link.field == name] for node in (new, old))
            pairs += [(a, b) for a, b in zip_longest(ours, theirs) if a and b]
    return found


def _param_changes(new: Manifest, old: Manifest) -> Iterator[Change]:
    values = [
        {"stage version": manifest.identity.get("version"), **dict(_flat(manifest.identity.get("params") or {}))}
        for manifest in (old, new)
    ]
    for name in sorted({*values[0], *values[1]}):
        before, now = (of.get(name) for of in values)
        if before != now:
            yield Change(name, before, now)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{path}.{name}" if path else str(name))
    else:
        yield path, value


def _source_changes(new: Node, old: Node) -> Iterator[Change]:
    ours, theirs = ({file.path: file.sha256 for file in node.sources} for node in (new, old))
    if ours != theirs:
        added, gone = len(ours.keys() - theirs.keys()), len(theirs.keys() - ours.keys())
        other = sum(ours[path] != theirs[path] for path in ours.keys() & theirs.keys())
        yield Change("source files", len(theirs), f"{len(ours)} ({added} new, {gone} gone, {other} changed)")
