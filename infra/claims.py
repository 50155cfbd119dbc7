"""Claims: who may work on a key. A lease with a fencing token, made of create-only writes.

    claims/<kind>/<key>/000001.json          generation 1: its owner. Create-only, so each generation has one owner.
    claims/<kind>/<key>/000001.beat.json     its heartbeat, by its owner only: a counter, and whether it was released

The newest generation holds the key. Taking over means creating the next one, and only one taker can. It is allowed when
the holder released, when it is a process of this very machine that is dead, or when its counter stood still for a whole
lease on the *observer's* monotonic clock; nobody compares wall clocks.

A holder that was only slow learns from `check` that a newer generation exists. The generation is the fencing token: a
job carries it (`to_json`, `from_json`) and calls `check` right before it commits. What slips through the instant
between check and commit is harmless, because the commit itself is create-only.

Generations are never deleted: a reused number would be a second owner for an old token.

A claim or heartbeat that is damaged is one of an unknown holder: he is waited for, a lease long, as for any other.
"""

from __future__ import annotations

import logging
import math
import os
import re
import threading
import time
import uuid
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from infra.artifacts import Manifest
from infra.errors import DamagedObject, LeaseLost, Preempted, StoreError, UsageError
from infra.process_id import is_dead, is_here, this_process
from infra.store import Store
from infra.stored_json import StoredJson

LEASE_SECONDS = 10.0
LONGEST_LEASE = 3600.0
"""Seconds; a claim that asks for more is taken for damaged, so that nobody waits for ever."""
LONG_DEAD = 86400.0
"""Age of a heartbeat from which on nobody asks whose it was."""
NAME = re.compile(r"(\d{6})(\.beat)?\.json")
log = logging.getLogger(__name__)


class Holder(TypedDict):
    """Who holds a claim: a process (`infra/process_id.py`), and seconds without a heartbeat after which it is over."""

    owner: str
    lease: float
    machine: NotRequired[str | None]
    pid: NotRequired[int]
    started: NotRequired[str | None]


class Beat(TypedDict):
    """A heartbeat."""

    count: int
    released: bool


WAIT = "Nothing to do: its holder counts as unknown and is waited for, a lease long."
HOLDER, BEAT = StoredJson("a claim", Holder, WAIT), StoredJson("the heartbeat of a claim", Beat, WAIT)


def default_lease() -> float:
    """Seconds without a heartbeat after which a claim may be taken over: FORGELINE_LEASE, or 10. Raises UsageError."""
    text = os.environ.get("FORGELINE_LEASE") or str(LEASE_SECONDS)
    try:
        lease = float(text)
    except ValueError:
        lease = 0.0
    if not 0 < lease <= LONGEST_LEASE:
        hint = f"Set seconds, above 0 and at most {LONGEST_LEASE:.0f}; unset, it is {LEASE_SECONDS:.0f}."
        raise UsageError(f"{text!r} is no lease", where="FORGELINE_LEASE", hint=hint)
    return lease


class Fence:
    """The right to commit under a key, as carried by a job: it can be checked, not renewed."""

    def __init__(self, store: Store, kind: str, key: str, generation: int) -> None:
        self.store, self.kind, self.key, self.token = store, kind, key, generation

    def check(self) -> None:
        """Raise LeaseLost if the key was taken over. One existence query."""
        if self.store.exists(f"{_folder(self.kind, self.key)}/{self.token + 1:06d}.json"):
            raise LeaseLost(
                "another run took over this work",
                where=f"claims/{self.kind}/{self.key}",
                hint="This process did not show a sign of life for a whole lease; its result is not committed.",
            )

    def to_json(self) -> dict[str, Any]:
        """The fence as JSON, for a job file."""
        return {"kind": self.kind, "key": self.key, "generation": self.token}

    @staticmethod
    def from_json(store: Store, data: dict[str, Any]) -> Fence:
        """The fence of a claim that another process holds."""
        return Fence(store, data["kind"], data["key"], data["generation"])


class Claim(Fence):
    """A held claim. A background thread beats until `release`; also a context manager."""

    def __init__(self, store: Store, kind: str, key: str, generation: int, lease: float) -> None:
        super().__init__(store, kind, key, generation)
        self.lease, self._count = lease, 0
        self._stopped, self._lost = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat_until_released, name=f"claim-{kind}", daemon=True)
        self._thread.start()

    def check_alive(self) -> None:
        """Raise LeaseLost if the heartbeat has found the key taken over. Asks nobody, so it may be called in a loop."""
        if self._lost.is_set():
            self.check()

    def beat(self) -> None:
        """Show a sign of life."""
        self._count += 1
        self._write(released=False)

    def release(self) -> None:
        """Let the next one have the key at once. A failing store is logged only: the lease then runs out by itself."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        self._thread.join(self.lease)
        try:
            self._write(released=True)
        except StoreError as error:
            log.warning("claim on %s/%s could not be released: %s", self.kind, self.key, error)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def _write(self, *, released: bool) -> None:
        path = f"{_folder(self.kind, self.key)}/{self.token:06d}.beat.json"
        self.store.write_bytes(path, BEAT.encode({"count": self._count, "released": released}))

    def _beat_until_released(self) -> None:
        while not self._stopped.wait(self.lease / 3):
            try:
                self.beat()
                self.check()
            except LeaseLost:
                self._lost.set()
                return
            except StoreError as error:
                log.warning("heartbeat for %s/%s failed, going on: %s", self.kind, self.key, error)


class Watch:
    """One observer's view of the claims on a key. Keep it while waiting: it remembers when the holder last moved."""

    def __init__(self, store: Store, kind: str, key: str, lease: float | None = None) -> None:
        self.store, self.kind, self.key = store, kind, key
        self.lease = default_lease() if lease is None else lease
        self._newest = 0
        self._last: tuple[int, int | None] | None = None
        self._looked = self._still = 0.0
        """When it was looked at last, and for how many seconds the heartbeat was seen to stand still."""

    def try_acquire(self) -> Claim | None:
        """The claim if it is free now; None while another holds it, or took it first. Never waits."""
        folder = _folder(self.kind, self.key)
        # A listing may lag behind; then the create below fails, because there is a newer generation.
        listed = [int(name[1]) for name in map(NAME.fullmatch, self.store.list(folder)) if name and not name[2]]
        self._newest = max([self._newest, *listed])
        if self._newest and not self._may_take_over(self._newest):
            return None
        generation = self._newest + 1
        record = {"owner": uuid.uuid4().hex, "lease": self.lease, **this_process()}
        if self.store.create(f"{folder}/{generation:06d}.json", HOLDER.encode(record)):
            return Claim(self.store, self.kind, self.key, generation, self.lease)
        self._newest = generation
        return None

    def _may_take_over(self, generation: int) -> bool:
        stem = f"{_folder(self.kind, self.key)}/{generation:06d}"
        holder, beat = _holder(self.store, stem), _beat(self.store, stem)
        if (beat and beat["released"]) or (holder and is_dead(holder)):
            return True
        lease = holder["lease"] if holder else self.lease
        now, seen = time.monotonic(), (generation, beat["count"] if beat else None)
        if seen != self._last:
            self._last, self._still = seen, 0.0
        else:
            # While the store was away, holders could not beat, nor could we look: that says little.
            self._still += min(now - self._looked, lease / 2)
        self._looked = now
        return self._still > lease


def try_acquire(store: Store, kind: str, key: str, lease: float | None = None) -> Claim | None:
    """The claim on a key if it is free, released, or its holder is dead on this machine; else None."""
    return Watch(store, kind, key, lease).try_acquire()


def wait_for(
    store: Store,
    kind: str,
    key: str,
    *,
    lease: float | None = None,
    poll: float = 0.4,
    cancelled: threading.Event | None = None,
) -> Manifest | Claim:
    """Wait until the artifact is there (its manifest) or is ours to make (the claim). Raises Preempted if cancelled."""
    watch, cancelled = Watch(store, kind, key, lease), cancelled or threading.Event()
    while True:
        if (manifest := store.manifest(kind, key)) is not None:
            return manifest
        if (claim := watch.try_acquire()) is not None:
            # The last holder may have committed and released between the two questions.
            if (manifest := store.manifest(kind, key)) is not None:
                claim.release()
                return manifest
            return claim
        if cancelled.wait(poll):
            raise Preempted("cancelled while waiting for another run", where=f"claims/{kind}/{key}")


def held(store: Store, now: float, prefix: str = "claims") -> set[tuple[str, str]]:
    """Kind and key of what somebody works on, for one who cannot wait a lease to see whether a heartbeat moves.

    A claim counts that was not released, whose owner is not known to be dead, and whose last sign of life is younger
    than three leases at `now`, both by the store's clock. prefix: look only there, e.g. `claims/KIND/KEY`.
    """
    return {(claim.kind, claim.key) for claim in open_claims(store, now, prefix, LONG_DEAD) if not claim.dead}


def _folder(kind: str, key: str) -> str:
    return f"claims/{kind}/{key}"


def _holder(store: Store, stem: str) -> Holder | None:
    """Who holds a claim; None where that is unknown."""
    try:
        holder = HOLDER.find(store, f"{stem}.json")
        if holder is not None and not 0 < holder["lease"] <= LONGEST_LEASE:
            raise HOLDER.damaged(f"a lease of {holder['lease']} s", f"{store.url}/{stem}.json")
        return holder
    except DamagedObject as error:
        log.info("%s", error)
        return None


def _beat(store: Store, stem: str) -> Beat | None:
    """The last heartbeat of a claim; None where there is none that can be read."""
    try:
        return BEAT.find(store, f"{stem}.beat.json")
    except DamagedObject as error:
        log.info("%s", error)
        return None


@dataclass(frozen=True)
class OpenClaim:
    """A claim that nobody released. Ages in seconds by the store's clock; `silent`: since the last sign of life.

    dead: its owner is known to be, or was silent for three leases; the next one who wants the key takes it over.
    """

    kind: str
    key: str
    owner: str
    age: float
    silent: float
    dead: bool


def open_claims(store: Store, now: float, prefix: str = "claims", longest_silence: float = math.inf) -> list[OpenClaim]:
    """The newest claim of every key unless it was released, for one who only looks. now: by the store's clock.

    longest_silence: seconds without a sign of life from which on a claim is not even read.
    """
    newest: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
    for entry in store.entries(prefix):
        _, kind, key, name = [*entry.path.split("/"), "", "", ""][:4]
        if generation := NAME.fullmatch(name):
            claims = newest.setdefault((kind, key), {})
            first, last = claims.get(generation[1], (entry.modified, entry.modified))
            claims[generation[1]] = min(first, entry.modified), max(last, entry.modified)
    found = []
    for (kind, key), claims in newest.items():
        began, last = claims[max(claims)]
        if now - last > longest_silence:
            continue
        stem = f"{_folder(kind, key)}/{max(claims)}"
        if (beat := _beat(store, stem)) and beat["released"]:
            continue
        holder = _holder(store, stem)
        lease = holder["lease"] if holder else LEASE_SECONDS
        dead = (holder is not None and is_dead(holder)) or now - last > 3 * lease
        found.append(OpenClaim(kind, key, _who(holder), now - began, max(now - last, 0.0), dead))
    return found


def _who(holder: Holder | None) -> str:
    if holder is None:
        return "an unknown process (its claim is damaged)"
    return f"process {holder.get('pid')} of {'this' if is_here(holder) else 'another'} machine"
