"""Moving a ref to what was released. Runs in the orchestrator, after the release artifact is committed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from infra import refs
from infra.artifacts import ArtifactRef

if TYPE_CHECKING:
    from infra.artifacts import Manifest
    from infra.store import Store


def publish(store: Store, manifest: Manifest) -> None:
    """Publish a committed `release` artifact."""
    release = json.loads((store.fetch(manifest) / "release.json").read_text(encoding="utf-8"))
    promote(store, release, f"release {manifest.digest[:16]}")


def promote(store: Store, release: dict[str, Any], note: str) -> bool:
    """Move the release's ref to its model, once for each release; True if it moved.

    A pipeline that runs again reuses its release. That must not undo a later decision, such as a roll-back by hand, so
    a release that is in the ref's history stays there and moves nothing.
    """
    model = ArtifactRef(**release["model"])
    if any(entry.note == note and entry.artifact == model for entry in refs.history(store, release["ref"])):
        return False
    refs.advance(store, release["ref"], model, note=note)
    return True
