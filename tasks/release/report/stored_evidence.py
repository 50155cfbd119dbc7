"""Evidence straight from a store: the records of every artifact, and the payloads that are small and readable."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from infra.artifacts import ArtifactRef
from infra.errors import StoreError
from tasks.release.evidence import Evidence, Load

if TYPE_CHECKING:
    from infra.store import Store

READABLE = ("scores", "verdict", "release", "drift")


def evidence_loader(store: Store) -> Load:
    """A loader for `render_report`. Weights and data are never fetched for a report, only figures about them."""
    from infra import refs

    def load(artifact: dict[str, Any]) -> Evidence:
        ref = ArtifactRef(**artifact)
        manifest = store.manifest(ref.kind, ref.key)
        if manifest is None:
            raise StoreError("it is no longer in the store", where=ref.prefix, hint="Run the pipeline again.")
        payload = store.fetch(manifest) if manifest.type in READABLE else None
        moves = []
        if manifest.type == "release" and payload is not None:
            name = json.loads((payload / "release.json").read_text(encoding="utf-8"))["ref"]
            moves = [
                {"at": e.at, "kind": e.kind, "key": e.key, "by": e.by, "note": e.note}
                for e in refs.history(store, name)
            ]
        return Evidence(manifest.to_json(), payload, store.fetch_records(manifest), moves)

    return load
