"""What a run record is made of, as it lies in the store."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from infra.refs import Named
from infra.stored_json import StoredJson


class Failure(TypedDict):
    """The error a stage ended with."""

    type: str
    what: str
    where: str | None
    hint: str | None


class StageEntry(TypedDict):
    """What became of a stage."""

    name: str
    kind: str
    action: str
    reason: str
    seconds: float
    started_at: float
    artifact: Named | None
    metrics: dict[str, float]
    needs: list[str]
    error: Failure | None
    warnings: NotRequired[list[str]]
    refusal: NotRequired[list[str]]


class Process(TypedDict):
    """The process of a run (`infra/process_id.py`), and its machine's name."""

    machine: str | None
    pid: int
    started: str | None
    host: str


class Ledger(TypedDict, total=False):
    """Where the seconds went, as far as people see it (`tasks/run/stage_times.py`)."""

    wall: float
    goodput: float
    buckets: dict[str, float]
    stages: dict[str, Any]


class Record(TypedDict):
    """A run record; some of it is younger than the oldest that is read."""

    run: str
    pipeline: str
    status: str
    seconds: float
    stages: list[StageEntry]
    description: NotRequired[str]
    started: NotRequired[str]
    process: NotRequired[Process | None]
    flow_run: NotRequired[str | None]
    links: NotRequired[dict[str, str]]
    budget: NotRequired[dict[str, Any] | None]
    stopped: NotRequired[str]
    ledger: NotRequired[Ledger | None]
    overrides: NotRequired[list[str]]
    config: NotRequired[str]


RECORDS = StoredJson(
    "the record of a run", Record, "Artifacts are not concerned: only what was noted of that run is lost."
)
