"""The record of a run: what was asked, what became of each stage, how long it took. JSON at `runs/<run>/run.json`.

Written when the run starts, after every stage, and at its end, so that a killed run still tells how far it got.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from infra.errors import ForgelineError, UsageError

if TYPE_CHECKING:
    from infra.artifacts import ArtifactRef
    from infra.store import Store
    from tasks.execute import StageResult
    from tasks.pipeline import Pipeline, StageNode


def new_run_id() -> str:
    """A name that sorts by time and does not collide: `20261124-031500-3fa9`."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


class RunRecord:
    """Collects what happens to the stages of one run, from many threads, and keeps the stored copy current."""

    def __init__(self, run: str, pipeline: Pipeline, store: Store) -> None:
        self.store, self._lock, self._started = store, threading.Lock(), time.monotonic()
        self._begun: dict[str, float] = {}
        self.data: dict[str, Any] = {
            "run": run,
            "pipeline": pipeline.name,
            "description": pipeline.description,
            "status": "running",
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": 0.0,
            "process": os.getpid(),
            "overrides": list(pipeline.overrides),
            "config": pipeline.text,
            "stages": [_waiting(node) for node in pipeline.stages.values()],
        }
        self._stages = {entry["name"]: entry for entry in self.data["stages"]}

    def begin(self, name: str) -> None:
        """The stage's job starts now."""
        with self._lock:
            self._begun[name] = time.monotonic()

    def end(self, name: str, result: StageResult | ForgelineError) -> None:
        """The stage ended; a later call for the same stage (another attempt) replaces it."""
        now = time.monotonic()
        with self._lock:
            entry, begun = self._stages[name], self._begun.get(name, now)
            entry["seconds"], entry["started_at"] = round(now - begun, 3), round(begun - self._started, 3)
            if isinstance(result, ForgelineError):
                entry.update(action="failed", error=result.to_json())
            else:
                entry["error"] = None
                self.note(name, result)
        self.save()

    def reuses(self, artifacts: Mapping[str, ArtifactRef | None]) -> None:
        """Say what stages are going to reuse, before it is looked at: what a record names is not collected."""
        for name, artifact in artifacts.items():
            self._stages[name]["artifact"] = asdict(artifact) if artifact else None
        self.save()

    def note(self, name: str, result: StageResult) -> None:
        """A stage that was reused without a job; saved with the next save."""
        manifest = result.manifest
        self._stages[name].update(
            action="refused" if result.refused else result.action,
            reason=result.reason,
            artifact=asdict(manifest.ref),
            metrics=manifest.metrics,
        )

    def skip(self, name: str, reason: str) -> None:
        """A stage does not run."""
        self._stages[name].update(action="skipped", reason=reason)

    def finish(self, status: str) -> None:
        """Close the record: `ok`, `failed`, `refused` or `interrupted`."""
        with self._lock:
            self.data["status"] = status
            for entry in self.data["stages"]:
                if entry["action"] == "waiting":
                    entry["action"] = "skipped"
        self.save()

    def save(self) -> None:
        with self._lock:
            self.data["seconds"] = round(time.monotonic() - self._started, 3)
            self.store.write_bytes(f"runs/{self.data['run']}/run.json", json.dumps(self.data, indent=1).encode())

    def summary(self) -> dict[str, Any]:
        """What `forgeline run --json` prints."""
        fields = ("name", "kind", "action", "seconds", "artifact", "metrics")
        return {
            "run": self.data["run"],
            "status": self.data["status"],
            "stages": [{field: entry[field] for field in fields} for entry in self.data["stages"]],
        }


def _waiting(node: StageNode) -> dict[str, Any]:
    return {
        "name": node.name,
        "kind": node.stage.kind,
        "action": "waiting",
        "reason": "",
        "seconds": 0.0,
        "started_at": 0.0,
        "artifact": None,
        "metrics": {},
        "needs": list(node.needs),
        "error": None,
    }


def list_runs(store: Store) -> list[str]:
    """Ids of the runs in a store, oldest first."""
    return [name for name in store.list("runs") if store.exists(f"runs/{name}/run.json")]


def read_run(store: Store, run: str) -> dict[str, Any]:
    """The record of a run; `latest` is the newest. Raises UsageError if there is none of that name."""
    from infra.config_check import did_you_mean

    known = list_runs(store)
    if run == "latest" and known:
        run = known[-1]
    if run not in known:
        raise UsageError(f"no run {run!r} in this store", hint=did_you_mean(run, known[-5:]) or "Nothing ran here yet.")
    record: dict[str, Any] = store.read_json(f"runs/{run}/run.json")
    return record
