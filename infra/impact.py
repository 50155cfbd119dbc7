"""What a data file, or an artifact, went into: every artifact made from it, every ref that points or pointed there."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from infra import refs
from infra.config_check import did_you_mean
from infra.errors import UsageError
from infra.keys import file_digest
from infra.lineage import Graph, Id, Node, whole
from infra.store import Store

log = logging.getLogger(__name__)
PREFIX = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True)
class RefUse:
    """An entry of a ref that names an impacted artifact; `current`: it is what the ref means now."""

    name: str
    number: int
    artifact: Id
    current: bool
    at: str
    note: str


@dataclass(frozen=True)
class Impact:
    """`starts`: the artifacts that used it themselves, each with what was found in it. `graph`: they and all below."""

    asked: str
    starts: dict[Id, str]
    graph: Graph
    refs: list[RefUse]


def impact(store: Store, asked: str) -> Impact:
    """What used `asked`: the path of a source file as datasets record it, a file on this disk (by its bytes), or 8 or
    more hex digits of the digest of a file, or of the digest or key of an artifact.

    Raises UsageError if no artifact of the store used it.
    """
    graph = whole(store)
    starts = {id: why for id, node in graph.nodes.items() if (why := _used(node, asked, _digest(asked)))}
    if not starts:
        paths = {file.path for node in graph.nodes.values() for file in node.sources}
        same = sorted(path for path in paths if path.endswith(f"/{Path(asked).name}") or path == Path(asked).name)
        hint = (
            f"Files of that name: {', '.join(same[:5])}."
            if same
            else did_you_mean(asked, paths)
            if len(paths) < 20
            else ""
        )
        raise UsageError(
            f"no artifact in this store used {asked!r}",
            hint=hint or "Give the path of a source file, a file on this disk, or 8 digits or more of a digest.",
        )
    below = graph.below(starts)
    return Impact(asked, starts, below, ref_uses(store, below))


def ref_uses(store: Store, graph: Graph) -> list[RefUse]:
    """Every entry of every ref that names an artifact of the graph, newest first for each ref."""
    found = []
    for name in refs.names(store):
        past = refs.past(store, name)
        if past.number and past.newest is None:
            log.warning("entry %d of ref %s is damaged: what it points to now is not known", past.number, name)
        for entry in past.entries:
            id = (entry.kind, entry.key)
            if id in graph.nodes:
                found.append(RefUse(name, entry.number, id, entry.number == past.number, entry.at, entry.note))
    return found


def _digest(asked: str) -> str | None:
    """The digest, or its beginning, that `asked` is or has."""
    if PREFIX.fullmatch(asked):
        return asked
    path = Path(asked)
    return file_digest(path) if path.is_file() else None


def _used(node: Node, asked: str, digest: str | None) -> str:
    """What of the artifact is what was asked for, or ""."""
    for file in node.sources:
        if file.path == asked or (digest and file.sha256.startswith(digest)):
            return f"{file.path} (sha256 {file.sha256[:16]})"
    if digest is None or node.manifest is None:
        return ""
    if node.manifest.digest.startswith(digest):
        return "its content"
    if node.manifest.key.startswith(digest):
        return "its key"
    return next((f"its file {file.path}" for file in node.manifest.payload if file.sha256.startswith(digest)), "")
