"""Checks of a store: that it works and how fast, its clock, who holds claims in it, what killed runs left there."""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from flows.checks.check import Check, Finding, clocks
from infra.claims import OpenClaim, open_claims
from infra.durations import duration_text
from infra.errors import DamagedObject
from infra.keys import file_digest
from infra.leftovers import leftovers
from infra.objects import Objects
from infra.open_store import open_store
from infra.verification import last_verified

SAMPLE = 8_000_000
SLOW = 2e6
"""Bytes a second under which a store is called slow."""
RECENT = 7 * 86400.0
SHOWN = 3
VERIFY_AFTER = 30 * 86400.0
"""Seconds after which a store is worth verifying again."""


def checks(url: str) -> list[Check]:
    return [
        Check("store", partial(round_trip, url), seconds=60.0),
        Check("store clock", partial(clock, url), after="store"),
        Check("claims", partial(claims, url), after="store", overdue="warning"),
        Check("verified", partial(verified, url), after="store", overdue="warning"),
        Check("leftovers", partial(left, url), seconds=60.0, after="store", overdue="warning"),
    ]


def round_trip(url: str) -> Finding:
    """Writes, reads and removes an object of some MB, and asks whether create-only writes are honoured."""
    store = open_store(url)
    Objects.probe(store)  # without the sweep that goes with a run: nothing is changed here
    path = f".probe/{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory() as folder:
        there, back = Path(folder, "there"), Path(folder, "back")
        there.write_bytes(os.urandom(SAMPLE))
        began = time.monotonic()
        try:
            _, sha = store.put_file(there, path)
            stored = time.monotonic()
            store.get_file(path, back)
            fetched = time.monotonic()
        finally:
            store.delete(path)
        if file_digest(back) != sha:
            return Finding("fault", f"{store.url} gave back other bytes than it was given", "Do not use this store.")
    up, down = SAMPLE / (stored - began), SAMPLE / (fetched - stored)
    said = f"{store.url}: create-only honoured; {up / 1e6:.0f} MB/s there, {down / 1e6:.0f} MB/s back"
    if min(up, down) < SLOW:
        return Finding("warning", said, "Slow: checkpoints and data will wait for it. Use a store that is nearer.")
    return Finding("ok", said)


def clock(url: str) -> Finding:
    """The store's clock against ours."""
    store = open_store(url)
    before = time.time()
    now = store.now()
    return clocks("the store's clock", now - (before + time.time()) / 2)


def claims(url: str) -> Finding:
    """Who works on what, and who was cut off."""
    store = open_store(url)
    found = open_claims(store, store.now())
    living = [one for one in found if not one.dead]
    dead = [one for one in found if one.dead and one.silent < RECENT and store.manifest(one.kind, one.key) is None]
    said = [f"{len(living)} at work" + _shown(living)] if living else []
    if dead:
        said.append(f"{len(dead)} of runs that were killed" + _shown(dead))
        return Finding("warning", "; ".join(said), "Run their pipelines again: they go on from where those stopped.")
    return Finding("ok", "; ".join(said) or "nobody is at work")


def _shown(some: list[OpenClaim]) -> str:
    parts = [
        f"{one.kind} {one.key[:10]} by {one.owner} for {duration_text(one.age)}, "
        f"last sign of life {duration_text(one.silent)} ago"
        for one in some[:SHOWN]
    ]
    return f" ({', '.join(parts)}{', ...' if len(some) > SHOWN else ''})"


def verified(url: str) -> Finding:
    """When every byte of the store was last compared with what was written, and what was found."""
    store = open_store(url)
    try:
        last = last_verified(store)
    except DamagedObject as error:
        return Finding("warning", error.what, error.hint or "")
    how = "`forgeline verify --all` reads every byte of it."
    if last is None:
        return Finding("ok", f"never verified as a whole; {how}")
    age = max(0.0, (datetime.now(UTC) - datetime.fromisoformat(last["at"])).total_seconds())
    said = f"{last['artifacts']} artifacts, {last['bytes'] / 1e6:.1f} MB, were verified {duration_text(age)} ago"
    if last["damaged"]:
        return Finding("warning", f"{said}; {last['damaged']} objects were damaged", f"Which and what to do: {how}")
    return Finding("warning", said, how) if age > VERIFY_AFTER else Finding("ok", f"{said}, all in order")


def left(url: str) -> Finding:
    """Attempts and uploads that killed runs left behind."""
    store = open_store(url)
    found = leftovers(store, store.now())
    if not found.attempts and not found.uploads:
        return Finding("ok", "nothing that killed runs left behind")
    said = f"{found.attempts} attempts of killed runs ({found.bytes / 1e6:.1f} MB), {found.uploads} uploads cut short"
    return Finding("warning", said, "They do no harm but take space: `forgeline gc --delete` removes them.")
