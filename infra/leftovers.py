"""What killed runs left in a store: attempts that no manifest names, uploads cut short."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from infra.artifacts import Manifest
from infra.claims import open_claims
from infra.errors import CorruptArtifact
from infra.store import Store

SETTLED = 86400.0
"""Seconds after which whoever wrote an attempt has committed it or is gone."""


@dataclass(frozen=True)
class Leftovers:
    """How many attempts, their size in bytes, and how many uploads."""

    attempts: int
    bytes: int
    uploads: int


def leftovers(store: Store, now: float) -> Leftovers:
    """Attempts and uploads a day old or more that lead to nothing. now: by the store's clock.

    Reads a listing, and the manifests of keys that were tried more than once.
    """
    at_work = {(claim.kind, claim.key) for claim in open_claims(store, now) if not claim.dead}
    sizes: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    newest: dict[tuple[str, str, str], float] = defaultdict(float)
    committed: set[tuple[str, str]] = set()
    for entry in store.entries("artifacts"):
        _, kind, key, attempt, *rest = entry.path.split("/")
        if not rest:
            committed.add((kind, key))
            continue
        sizes[kind, key][attempt] += entry.size
        newest[kind, key, attempt] = max(newest[kind, key, attempt], entry.modified)
    loose: list[int] = []
    for (kind, key), attempts in sizes.items():
        if (kind, key) in at_work or ((kind, key) in committed and len(attempts) == 1):
            continue
        standing = _manifest(store, kind, key) if (kind, key) in committed else None
        named = standing.attempt if standing else ""
        old = {a: size for a, size in attempts.items() if now - newest[kind, key, a] > SETTLED}
        loose += [size for attempt, size in old.items() if attempt != named]
    return Leftovers(len(loose), sum(loose), len(store.unfinished(remove=False)))


def _manifest(store: Store, kind: str, key: str) -> Manifest | None:
    try:
        return store.manifest(kind, key)
    except CorruptArtifact:
        return None
