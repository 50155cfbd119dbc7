"""The ledger of a run as a bar: what share of its wall time was work that counts, and where the rest went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from infra.ledger import BUCKETS
from tasks.release import readable
from tasks.release.evidence import as_object

TITLES = {
    "useful": "useful",
    "commit": "storing results",
    "checkpoint_stall": "waiting for checkpoints",
    "data_wait": "waiting for data",
    "startup": "starting up",
    "recomputed": "done again",
    "queue": "waiting for a turn",
    "other": "other",
}


@dataclass(frozen=True)
class LedgerView:
    """goodput: the useful share in words; parts: (bucket, title, percent of the bar, seconds in words)."""

    goodput: str
    parts: list[tuple[str, str, str, str]]
    texts: list[str]


def ledger_view(ledger: Any) -> LedgerView | None:
    """None for a run without one: an old record, or a run that took no time."""
    ledger = as_object(ledger)
    seconds = {b: v for b, v in as_object(ledger.get("buckets")).items() if b in BUCKETS and readable.is_number(v)}
    wall = sum(seconds.values())
    if wall <= 0:
        return None
    parts = [
        (bucket, TITLES[bucket], f"{100 * seconds[bucket] / wall:.2f}", readable.seconds(seconds[bucket]))
        for bucket in BUCKETS
        if seconds.get(bucket, 0) > 0
    ]
    hours = {"core hours": "core_seconds", "GPU hours": "gpu_seconds"}
    texts = [
        f"{readable.number(ledger[name] / 3600)} {unit}"
        for unit, name in hours.items()
        if readable.is_number(ledger.get(name)) and ledger[name] > 0
    ]
    if readable.is_number(ledger.get("cost")):
        texts.append(f"cost {readable.number(ledger['cost'], 2)}")
    saved = ledger.get("saved_by_reuse")
    if readable.is_number(saved) and saved > 0:
        texts.append(f"{readable.seconds(saved)} saved by reuse")
    return LedgerView(readable.percent(seconds.get("useful", 0.0) / wall), parts, texts)
