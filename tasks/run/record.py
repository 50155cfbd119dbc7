"""The record of a run: what was asked, what became of each stage, how long it took. JSON at `runs/<run>/run.json`.

Written when the run starts, after every stage, and at its end, so that a killed run still shows how far it got.
"""

from __future__ import annotations

import logging
import re
import secrets
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.budget import Spent
from infra.errors import DamagedObject, ForgelineError, StoreError, UsageError
from infra.process_id import is_dead, is_here, this_process
from tasks.release.promotion.verdicts import why_refused
from tasks.run.record_format import RECORDS
from tasks.run.stage_times import StageTimes
from tasks.run.unsaved_records import UNSAVED, keep

if TYPE_CHECKING:
    from infra.artifacts import ArtifactRef
    from infra.store import Store
    from tasks.pipeline.dag import Pipeline
    from tasks.pipeline.node import StageNode
    from tasks.run.execute import StageResult
NOTHING = Spent()
SILENT_SECONDS = 300.0
"""Age of a record that says `running` from which on nobody knows whether the run lives; it is renewed every 15 s."""
log = logging.getLogger(__name__)


def new_run_id() -> str:
    """A name that sorts by time and does not collide: `20261124-031500-3fa9`."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


class RunRecord:
    """Collects what happens to the stages of one run, from many threads, and keeps the stored copy current."""

    def __init__(
        self, run: str, pipeline: Pipeline, store: Store, already: Spent = NOTHING, folder: Path | None = None
    ) -> None:
        """already: what of the budget earlier rounds of the same command have spent.

        folder: where the record is kept as long as the store does not take it. None: nowhere.
        """
        self.store, self._lock, self.budget, self._already = store, threading.Lock(), pipeline.budget, already
        self._folder, self._saving = folder, threading.Lock()
        self.unsaved: StoreError | None = None
        """Why the store lacks the newest state of the record, if it does."""
        self.times = StageTimes(pipeline.stages.values())
        self._begun: dict[str, float] = {}
        self.data: dict[str, Any] = {
            "run": run,
            "pipeline": pipeline.name,
            "description": pipeline.description,
            "status": "running",
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": 0.0,
            "process": {**this_process(), "host": socket.gethostname()},
            "flow_run": None,
            "budget": pipeline.budget.model_dump(exclude_none=True) if pipeline.budget.limited else None,
            "stopped": "",
            "ledger": {},
            "overrides": list(pipeline.overrides),
            "config": pipeline.text,
            "stages": [_waiting(node) for node in pipeline.stages.values()],
        }
        self._stages = {entry["name"]: entry for entry in self.data["stages"]}

    def spent(self) -> Spent:
        """What of the budget is spent."""
        return self._already + self.times.spent()

    def stop(self, by: str) -> None:
        """Note what ends the run before its end."""
        self.data["stopped"] = by

    def begin(self, name: str) -> None:
        """The stage's job starts now."""
        with self._lock:
            self._begun[name] = self.times.now()

    def end(self, name: str, result: StageResult | ForgelineError) -> None:
        """The stage ended; a later call for the same stage (another attempt) replaces it."""
        self.times.end(name)
        now = self.times.now()
        with self._lock:
            entry, begun = self._stages[name], self._begun.get(name, now)
            entry["seconds"], entry["started_at"] = round(now - begun, 3), round(begun, 3)
            if isinstance(result, ForgelineError):
                entry.update(action="failed", error=result.to_json())
            else:
                entry["error"] = None
                self.note(name, result)
        self.try_to_save()

    def reuses(self, artifacts: Mapping[str, ArtifactRef | None]) -> None:
        """Say what stages are going to reuse, before it is looked at: what a record names is not collected."""
        for name, artifact in artifacts.items():
            self._stages[name]["artifact"] = asdict(artifact) if artifact else None
        self.save()

    def note(self, name: str, result: StageResult) -> None:
        """A stage that was reused without a job; saved with the next save."""
        manifest = result.manifest
        if result.action == "reuse":
            self.times.reused(name, manifest.timings)
        self._stages[name].update(
            action="refused" if result.refused else result.action,
            reason=result.reason,
            artifact=asdict(manifest.ref),
            metrics=manifest.metrics,
            warnings=manifest.warnings,
            refusal=why_refused(self.store, manifest) if result.refused else [],
        )

    def skip(self, name: str, reason: str) -> None:
        """A stage does not run."""
        self._stages[name].update(action="skipped", reason=reason)

    def finish(self, status: str, error: ForgelineError | None = None) -> None:
        """Close the record: `ok`, `failed`, `refused` or `interrupted`. error: what ended the run beside its stages."""
        with self._lock:
            self.data["status"] = status
            if status != "interrupted":
                self.stop(error.what if error else "")  # what was to stop it came too late
            for entry in self.data["stages"]:
                if entry["action"] == "waiting":
                    entry["action"] = "skipped"
        self.try_to_save()

    def save(self) -> None:
        """Store the record as it is now. Raises StoreError."""
        with self._saving:
            self._save(self._as_json())

    def try_to_save(self) -> None:
        """As `save`, but a store that is away is no reason to forget what happened: it is kept in the run's folder."""
        with self._saving:
            data = self._as_json()
            try:
                self._save(data)
            except StoreError as error:
                self.unsaved = error
                where = keep(self._folder, self.store, self.data["run"], data) if self._folder else "memory"
                log.warning("the record of the run could not be stored; it is kept in %s: %s", where, error)

    def _as_json(self) -> bytes:
        with self._lock:
            self.data["ledger"] = self.times.ledger(self.budget)
            self.data["seconds"] = self.data["ledger"]["wall"]
            return RECORDS.encode(self.data)

    def _save(self, data: bytes) -> None:
        self.store.write_bytes(f"runs/{self.data['run']}/run.json", data)
        self.unsaved = None
        if self._folder:
            (self._folder / UNSAVED).unlink(missing_ok=True)

    def summary(self) -> dict[str, Any]:
        """What `forgeline run --json` prints."""
        fields = ("name", "kind", "action", "seconds", "artifact", "metrics", "warnings", "refusal", "error")
        return {
            "run": self.data["run"],
            "status": self.data["status"],
            "stopped": self.data["stopped"],
            "stages": [{field: entry[field] for field in fields} for entry in self.data["stages"]],
        }


def spent_by(rounds: Sequence[RunRecord]) -> Spent:
    """What the finished rounds of one command have spent of the budget together."""
    ledgers = [record.data["ledger"] for record in rounds]
    return sum((Spent(ledger["wall"], ledger["core_seconds"], ledger["gpu_seconds"]) for ledger in ledgers), NOTHING)


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
        "warnings": [],
        "refusal": [],
        "needs": list(node.needs),
        "error": None,
    }


def list_runs(store: Store) -> list[str]:
    """Ids of the runs in a store, oldest first."""
    return [name for name in store.list("runs") if store.exists(f"runs/{name}/run.json")]


def read_run(store: Store, run: str) -> dict[str, Any]:
    """The record of a run; `latest` is the newest that can be read, `latest~1` the one before.

    Raises UsageError if there is none, DamagedObject where the one that was named cannot be read.
    """
    from infra.config_check import did_you_mean

    known, back = list_runs(store), re.fullmatch(r"latest(?:~(\d{1,9}))?", run)
    if back is None and run in known:
        return _read(store, run)
    left = int(back[1] or 0) if back else 0
    for name in reversed(known if back else []):
        record = find_run(store, name)
        if record is not None and left == 0:
            return record
        left -= record is not None
    raise UsageError(f"no run {run!r} in this store", hint=did_you_mean(run, known[-5:]) or "Nothing ran here yet.")


def find_run(store: Store, run: str) -> dict[str, Any] | None:
    """The record of a run; None where there is none, or it cannot be read, which a warning says."""
    try:
        return _read(store, run)
    except FileNotFoundError:
        return None
    except DamagedObject as error:
        log.warning("run %s is left out: %s", run, error.what)
        return None


def _read(store: Store, run: str) -> dict[str, Any]:
    path = f"runs/{run}/run.json"
    record = dict(RECORDS.read(store, path))
    if record["run"] != run:
        raise RECORDS.damaged(f"it is that of {record['run']!r}", f"{store.url}/{path}")
    return record


def state_of(record: dict[str, Any]) -> str:
    """The status of a run; `dead` if it says that it runs, but its process on this machine is gone."""
    process = record.get("process")
    dead = record["status"] == "running" and isinstance(process, dict) and is_dead(process)
    return "dead" if dead else str(record["status"])


def state_in(store: Store, record: dict[str, Any]) -> str:
    """As `state_of`; `silent` if the run was on another machine, or this one before it was restarted, and its record
    is renewed no more.
    """
    state, process = state_of(record), record.get("process")
    if state != "running" or not isinstance(process, dict) or is_here(process):
        return state
    return "silent" if store.now() - store.modified(f"runs/{record['run']}/run.json") > SILENT_SECONDS else state
