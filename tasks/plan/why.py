"""Why a stage runs, said as a diff against what it made last: parameters, inputs, source files."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from infra import refs
from infra.errors import CorruptArtifact
from infra.lineage import read_sources
from infra.manifests import undamaged

if TYPE_CHECKING:
    from infra.artifacts import Manifest
    from infra.store import Store
    from tasks.pipeline.node import StageNode
    from tasks.plan.resolved import Resolved

log = logging.getLogger(__name__)
MISSING = object()
NAMES_SHOWN = 3


def why_it_runs(pipeline: str, node: StageNode, resolved: Resolved, store: Store) -> str:
    """One line: `never ran`, or what differs from the identity behind the stage's `latest` ref."""
    past = refs.past(store, f"{pipeline}/{node.name}/latest", 1)
    if past.number and past.newest is None:
        return "what it made last is not known: its ref is damaged, and will be written again"
    entry = past.newest
    before = undamaged(store, entry.kind, entry.key) if entry else None
    if entry is None:
        return "never ran"
    if before is None or before.identity == resolved.identity:
        return "its artifact is gone or was quarantined"
    old, new = before.identity, resolved.identity
    reasons = []
    if old["kind"] != new["kind"]:
        return f"stage kind {old['kind']} -> {new['kind']}"
    if old["version"] != new["version"]:
        reasons.append(f"stage version {old['version']} -> {new['version']}")
    reasons += [f"{path} {a} -> {b}" for path, a, b in param_changes(old["params"], new["params"])]
    reasons += _input_changes(old["inputs"], new["inputs"], before.inputs, resolved, store)
    if old["sources"] != new["sources"]:
        recorded, files = _recorded_sources(store, before), {s.path: s.sha256 for s in resolved.sources}
        change = "" if recorded is None else f": {_file_changes(recorded, files)}"
        reasons.append(f"sources changed{change}")
    return "; ".join(reasons)


def param_changes(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """(path, old, new) for every leaf that differs; a missing side reads `unset`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            below = f"{path}.{name}" if path else name
            yield from param_changes(old.get(name, MISSING), new.get(name, MISSING), below)
    elif old != new:
        yield path, _shown(old), _shown(new)


def _shown(value: Any) -> str:
    return "unset" if value is MISSING else value if isinstance(value, str) else json.dumps(value)


def _input_changes(
    old: list[dict[str, Any]],
    new: list[dict[str, Any]],
    old_refs: dict[str, Any],
    resolved: Resolved,
    store: Store,
) -> Iterator[str]:
    # A champion that is not there has no digest.
    before, now = ({e["field"]: e for e in entries if e["digest"]} for entries in (old, new))
    names = {item.path: item.stage for item in resolved.items}
    # Inputs of one field stand in one list, in the order of the fields' paths.
    fields = [item.field for item in resolved.items]
    position_of = {item.path: fields[:i].count(fields[i]) for i, item in enumerate(resolved.items)}
    for path in sorted({*before, *now}):
        if path not in before:
            yield f"input {path} added: {names[path]}"
        elif path not in now:
            yield f"input {path} removed"
        elif before[path]["digest"] != now[path]["digest"]:
            base, position = path.partition("[")[0], position_of[path]
            ref = resolved.inputs[base][position]
            was = next(iter(old_refs.get(base, [])[position : position + 1]), None)
            yield f"input {names[path]} changed{_payload_change(was, ref, store)}"
        elif before[path] != now[path]:
            yield f"input {path}: {_shown(before[path].get('split'))} -> {_shown(now[path].get('split'))}"


def _payload_change(was: dict[str, str] | None, ref: Any, store: Store) -> str:
    if was is None:
        return ""
    old, new = undamaged(store, was["kind"], was["key"]), undamaged(store, ref.kind, ref.key)
    if old is None or new is None:
        return ""
    before, now = _recorded_sources(store, old), _recorded_sources(store, new)
    if before and now and before != now:
        return f": {_file_changes(before, now)}"
    return f": {_file_changes({e.path: e.sha256 for e in old.payload}, {e.path: e.sha256 for e in new.payload})}"


def _recorded_sources(store: Store, manifest: Manifest) -> dict[str, str] | None:
    """Path -> sha256 of the files a data stage read; empty for a stage that reads none, None for damaged records."""
    try:
        return {file.path: file.sha256 for file in read_sources(store, manifest)}
    except CorruptArtifact as error:
        log.warning("%s: %s", error.where, error.what)
        return None


def _file_changes(old: dict[str, str], new: dict[str, str]) -> str:
    parts = []
    for word, names in (
        ("added", sorted(new.keys() - old.keys())),
        ("removed", sorted(old.keys() - new.keys())),
        ("changed", sorted(n for n in old.keys() & new.keys() if old[n] != new[n])),
    ):
        if names:
            shown = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
            parts.append(f"{len(names)} file{'s' if len(names) > 1 else ''} {word} ({shown})")
    return ", ".join(parts) or "same files"
