"""A lineage for people and machines: a text tree, JSON, and a mermaid flowchart. `page.py` draws it as HTML."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from infra.impact import RefUse
from infra.lineage import Change, Graph, Id, Node
from tasks.release.readable import seconds

SHOWN = 20
"""Source files of one dataset that the tree names."""


@dataclass(frozen=True)
class Lineage:
    """What is shown: the artifacts `tops` begins with (of a ref: one), and what is known besides.

    down: the graph holds what was made of `tops`, not what they were made from. why: what an artifact was found by.
    """

    asked: str
    tops: Sequence[Id]
    graph: Graph
    changes: Mapping[Id, Sequence[Change]] = field(default_factory=dict)
    before: Id | None = None
    refs: Sequence[RefUse] = ()
    why: Mapping[Id, str] = field(default_factory=dict)
    down: bool = False

    @property
    def title(self) -> str:
        return f"What {self.asked} {'went into' if self.down else 'was made from'}"


def name_of(node: Node) -> str:
    """What people call it: its stage, or its kind where no stage is known."""
    return node.stage or node.id[0]


def facts(node: Node) -> dict[str, Any]:
    """Who made an artifact, when known: `run`, `commit`, `host`, `cpus`, `seconds`, `versions`."""
    if node.manifest is None:
        return {}
    made_by, timings = node.manifest.producer, node.manifest.timings
    found = {name: made_by.get(name) for name in ("pipeline", "run", "commit", "host", "cpus", "ranks", "versions")}
    found["seconds"] = round(sum(timings.values()), 3) if timings else None
    return {name: value for name, value in found.items() if value is not None}


def to_json(shown: Lineage) -> dict[str, Any]:
    """Everything, for other programs."""
    return {
        "asked": shown.asked,
        "direction": "down" if shown.down else "up",
        "tops": [list(top) for top in shown.tops],
        "before": list(shown.before) if shown.before else None,
        "artifacts": [_node_json(node, shown) for node in shown.graph.nodes.values()],
        "refs": [asdict(use) for use in shown.refs],
    }


def _node_json(node: Node, shown: Lineage) -> dict[str, Any]:
    kind, key = node.id
    manifest = node.manifest
    return {
        "stage": node.stage or None,
        "kind": kind,
        "key": key,
        "type": manifest.type if manifest else None,
        "digest": manifest.digest if manifest else None,
        "bytes": manifest.size if manifest else None,
        "problem": node.problem or None,
        **facts(node),
        "timings": manifest.timings if manifest else {},
        "params": manifest.identity.get("params") if manifest else None,
        "changed": [asdict(change) for change in shown.changes.get(node.id, ())],
        "inputs": [{**asdict(link), "to": list(link.to)} for link in node.links],
        "sources": [asdict(file) for file in node.sources],
        "found_by": shown.why.get(node.id),
    }


def to_text(shown: Lineage) -> str:
    """The tree: what was asked for first, below each artifact what it was made from (or what was made of it)."""
    lines = [shown.title]
    if shown.before:
        lines.append(f"compared with what it pointed to before: {_short(shown.before)}")
    children = _children(shown)
    drawn: set[Id] = set()
    for place, top in enumerate(shown.tops):
        lines += _tree(top, "", children, shown, drawn, last=place == len(shown.tops) - 1)
    if shown.down:
        lines.append("refs:" if shown.refs else "refs: none")
        for use in shown.refs:
            state = "now" if use.current else "before"
            lines.append(f"  {use.name}  {state}  entry {use.number}, {_short(use.artifact)}  {use.note}".rstrip())
    return "\n".join(lines)


def _children(shown: Lineage) -> dict[Id, list[tuple[str, Id]]]:
    """Below each artifact: (field, artifact)."""
    found: dict[Id, list[tuple[str, Id]]] = {}
    for node in shown.graph.nodes.values():
        for link in node.links:
            ends = (link.to, node.id) if shown.down else (node.id, link.to)
            if all(end in shown.graph.nodes for end in ends) and (link.field, ends[1]) not in found.get(ends[0], []):
                found.setdefault(ends[0], []).append((link.field, ends[1]))
    return found


def _tree(
    top: Id, field: str, children: Mapping[Id, list[tuple[str, Id]]], shown: Lineage, drawn: set[Id], *, last: bool
) -> Iterator[str]:
    node, label = shown.graph.nodes[top], f"{field}: " if field else ""
    branch, rest = ("└─ ", "   ") if last else ("├─ ", "│  ")
    if top in drawn:
        yield f"{branch}{label}{name_of(node)}  {_short(top)}  (see above)"
        return
    drawn.add(top)
    yield f"{branch}{label}{name_of(node)}  {_short(top)}{_content(node)}"
    below = children.get(top, [])
    bar = rest + ("│  " if below else "   ")
    for line in _details(node, shown):
        yield f"{bar}{line}"
    for place, (name, child) in enumerate(below):
        for line in _tree(child, name, children, shown, drawn, last=place == len(below) - 1):
            yield f"{rest}{line}"


def _short(id: Id) -> str:
    return f"{id[0]} {id[1][:12]}"


def _content(node: Node) -> str:
    return f"  content {node.manifest.digest[:12]}" if node.manifest else f"  MISSING: {node.problem}"


def _details(node: Node, shown: Lineage) -> Iterator[str]:
    if label := made_by(node):
        yield label
    if why := shown.why.get(node.id):
        yield f"used {why}" if node.sources else f"found by {why}"
    for change in shown.changes.get(node.id, ()):
        yield change_text(change)
    if node.problem and node.manifest:
        yield node.problem
    if not shown.down:
        for file in node.sources[:SHOWN]:
            yield f"{file.path}  sha256 {file.sha256[:16]}"
        if len(node.sources) > SHOWN:
            yield f"... and {len(node.sources) - SHOWN} more source files: --json and --html name them all"


def made_by(node: Node) -> str:
    """`12.3 s, run 20261124-031500-3fa9, commit 1a2b3c4d, host box (16 CPUs), torch 2.13.0`."""
    known = facts(node)
    parts = [
        seconds(known["seconds"]) if "seconds" in known else "",
        f"run {known['run']}" if "run" in known else "",
        f"commit {known['commit'][:12]}" if "commit" in known else "",
        f"host {known['host']} ({known.get('cpus', '?')} CPUs)" if "host" in known else "",
        versions_text(known),
    ]
    return ", ".join(part for part in parts if part)


def versions_text(known: Mapping[str, Any]) -> str:
    """The versions that say most: Forgeline's and torch's."""
    versions = known.get("versions") or {}
    return ", ".join(f"{name} {versions[name]}" for name in ("forgeline", "torch") if name in versions)


def change_text(change: Change) -> str:
    """`alpha: 0.01 -> 0.05`."""
    before, now = (value if isinstance(value, str) else json.dumps(value) for value in (change.before, change.now))
    return f"{change.name}: {before} -> {now}"


def to_mermaid(shown: Lineage) -> str:
    """A flowchart that GitHub, GitLab and many wikis draw."""
    names = {id: f"a{number}" for number, id in enumerate(shown.graph.nodes)}
    lines = ["flowchart TD"]
    for id, node in shown.graph.nodes.items():
        label = "missing" if node.manifest is None else f"{id[0]} {id[1][:8]}"
        lines.append(f'  {names[id]}["{_escaped(name_of(node))}<br/>{_escaped(label)}"]')
        if node.sources:
            files = f"{len(node.sources)} source files" if len(node.sources) > 1 else _escaped(node.sources[0].path)
            lines += [f'  {names[id]}s[("{files}")]', f"  {names[id]}s --> {names[id]}"]
    for id, node in shown.graph.nodes.items():
        for link in node.links:
            if link.to in names:
                lines.append(f'  {names[link.to]} -->|"{_escaped(link.field)}"| {names[id]}')
    for number, use in enumerate(use for use in shown.refs if use.current):
        lines += [f'  r{number}(["{_escaped(use.name)}"])', f"  r{number} -.-> {names[use.artifact]}"]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Text inside quotes of a mermaid label: what would end the label or be read as markup is written as an entity."""
    return "".join(char if char.isalnum() or char in " ._-/@[]:,+=" else f"#{ord(char)};" for char in text)
