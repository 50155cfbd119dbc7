"""`forgeline cancel`: the end of a run of this machine, asked for from outside."""

from __future__ import annotations

import time
from typing import Any

import psutil

from infra.errors import StageError, UsageError
from infra.process_id import is_dead, is_here, start_time
from infra.store import Store
from tasks.run.record import read_run, state_of

POLL_SECONDS = 0.1
PATIENCE = 60.0
"""Seconds for a run to end once it was asked to."""


def cancel_run(store: Store, record: dict[str, Any]) -> str:
    """End the run as Ctrl-C would, wait for that, and say how it ended.

    Raises UsageError where the run is another machine's, StageError if it does not end.
    """
    run, process = record["run"], record.get("process")
    if record["status"] != "running":
        return f"run {run} has ended already: {record['status']}"
    if not isinstance(process, dict) or not is_here(process):
        raise UsageError(f"run {run} is not one of this machine", hint=_elsewhere(process, record.get("flow_run")))
    if is_dead(process) or not _terminate(process["pid"], process["started"]):
        return f"run {run} is dead: its process {process['pid']} is gone; run the pipeline again to go on"
    ended = read_run(store, run)
    done = sum(entry["action"] in ("run", "reuse", "resume", "refused") for entry in ended["stages"])
    return f"run {run} ended: {state_of(ended)}, {done} of {len(ended['stages'])} stages done; run it again to go on"


def _terminate(pid: int, started: str) -> bool:
    """SIGTERM, and wait. False if that process is gone, and perhaps another has its number."""
    try:
        process = psutil.Process(pid)
        # Looked at after psutil took the process's age, which distinguishes it from a later one with the same number.
        if start_time(pid) != started:
            return False
        process.terminate()
    except psutil.NoSuchProcess:
        return False
    deadline = time.monotonic() + PATIENCE
    while start_time(pid) == started:  # not so for one that ended, even if its parent has not asked how yet
        if time.monotonic() > deadline:
            hint = f"`kill -9 {pid}` ends it and its jobs; what is committed stays whole."
            raise StageError(f"process {pid} did not end within {PATIENCE:.0f} s", hint=hint)
        time.sleep(POLL_SECONDS)
    return True


def _elsewhere(process: Any, flow_run: str | None) -> str:
    host = process["host"] if isinstance(process, dict) else "where it runs"
    there = f"Cancel it on {host} (it may be a container there, or have been restarted)"
    return there + (f", or through Prefect: prefect flow-run cancel {flow_run}" if flow_run else ".")
