"""Verdicts on a model, for whoever promotes it by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra import refs
from infra.artifacts import ArtifactRef, Manifest
from infra.errors import ForgelineError, GateRefused, UsageError
from infra.manifests import undamaged

if TYPE_CHECKING:
    from infra.refs import RefEntry
    from infra.store import Store

LATEST = "/latest"


@dataclass(frozen=True)
class Verdict:
    """A verdict, and what people call it: the entry of a ref where it was found."""

    content: dict[str, Any]
    name: str

    @property
    def digest(self) -> str:
        """Of the model it is on."""
        return str(self.content["candidate"]["digest"])


def verdict_at(store: Store, name: str) -> Verdict:
    """The verdict a ref points to. Raises UsageError where that is none."""
    entry = refs.get(store, name)
    found = _read(store, entry) if entry else None
    if found is None:
        raise UsageError(f"{name} points to no verdict", hint="Name the ref of a gate, e.g. reviews/gate/latest.")
    return found


def newest_verdict(store: Store, model: ArtifactRef) -> Verdict:
    """What gates said of a model: the newest verdict that let it through, else the newest that refused it.

    Raises UsageError where none was asked.
    """
    entries = [entry for name in refs.names(store) if name.endswith(LATEST) for entry in _of_a_gate(store, name)]
    entries.sort(key=lambda entry: entry.at, reverse=True)
    found = [one for one in (_read(store, entry) for entry in entries) if one and one.digest == model.digest]
    if not found:
        raise UsageError(
            "which gate let it through? None of this store's was asked about this very model",
            hint="Run a pipeline that judges it, or promote it without a verdict: --force --reason TEXT.",
        )
    return next((one for one in found if one.content["passed"]), found[0])


def why_refused(store: Store, verdict: Manifest) -> list[str]:
    """What a gate that refused asked for and did not get: a sentence with its numbers for each requirement."""
    try:
        content = json.loads((store.fetch(verdict) / "verdict.json").read_text(encoding="utf-8"))
        return [str(one["sentence"]) for one in content["requirements"] if not one["passed"]]
    except (ForgelineError, OSError, ValueError, KeyError, TypeError) as error:
        return [f"the verdict cannot be read: {error}"]


def require_passed(verdict: Verdict, model: ArtifactRef) -> None:
    """Raises UsageError where the verdict is on another model, GateRefused where it is a no."""
    if verdict.digest != model.digest:
        judged = verdict.content["candidate"]
        what = f"the verdict is on {judged['name']!r} ({verdict.digest[:12]}), not on this model ({model.digest[:12]})"
        raise UsageError(what, where=verdict.name)
    if not verdict.content["passed"]:
        failed = " ".join(one["sentence"] for one in verdict.content["requirements"] if not one["passed"])
        raise GateRefused("the gate refused this model", where=verdict.name, hint=failed)


def _of_a_gate(store: Store, name: str) -> list[RefEntry]:
    found = refs.past(store, name).entries
    return found if found and found[0].type == "verdict" else []


def _read(store: Store, entry: RefEntry) -> Verdict | None:
    manifest = undamaged(store, entry.kind, entry.key)
    if manifest is None or manifest.type != "verdict":
        return None
    content = json.loads((store.fetch(manifest) / "verdict.json").read_text(encoding="utf-8"))
    return Verdict(content, f"{entry.name} (entry {entry.number})")
