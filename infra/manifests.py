"""Manifests for whoever can do without: who only explains, estimates or compares does not fail for a damaged one."""

from __future__ import annotations

import logging

from infra.artifacts import Manifest
from infra.errors import CorruptArtifact
from infra.store import Store

log = logging.getLogger(__name__)


def undamaged(store: Store, kind: str, key: str) -> Manifest | None:
    """The artifact under a key; None where there is none, or its manifest is damaged, which a warning says."""
    try:
        return store.manifest(kind, key)
    except CorruptArtifact as error:
        log.warning("left out: %s: %s", error.where, error.what)
        return None
