"""The background processes of `forgeline up`: which they are, whether they live, and their end.

A process counts as ours only if it belongs to the recorded session, is not older than the record *and* carries our
PREFECT_HOME in its environment: a process id that the system gave to another program since is never touched. Runs and
their jobs have sessions of their own; they are known by a mark in the environment, which they inherit from the worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from infra.errors import UsageError

STOP_SECONDS = 10.0
RECORD = "services.json"
MARK = "WORKER_OF_FORGELINE"
"""Variable of all that a worker of ours started: of which home, at which port."""


@dataclass(frozen=True)
class Service:
    """A background process as recorded: the id of its session, and when it was started (seconds since the epoch).

    database: the Postgres of a server, without its password; empty: SQLite.
    """

    session: int
    since: float
    port: int
    database: str = ""


def read(folder: Path) -> dict[str, Service]:
    """What was started, by name. Raises UsageError where that cannot be read."""
    try:
        data = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return {name: Service(**service) for name, service in data.items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        hint = "End the prefect processes of this machine that it should name, then delete it."
        raise UsageError(f"damaged: {error}", where=str(folder / RECORD), hint=hint) from error


def mark(folder: Path, port: int) -> dict[str, str]:
    """The environment of a worker, by which what it started is found."""
    return {MARK: f"{folder}:{port}"}


def write(folder: Path, services: dict[str, Service]) -> None:
    partial = folder / f"{RECORD}.part"
    partial.write_text(json.dumps({name: vars(service) for name, service in services.items()}), encoding="utf-8")
    partial.replace(folder / RECORD)


def lives(folder: Path, service: Service) -> bool:
    """Whether its first process is there: without it nobody serves, or takes runs, whatever it started still does."""
    return _is_ours(folder, service, service.session)


def stop(folder: Path, service: Service) -> bool:
    """SIGTERM to the service, SIGKILL to what is left of it and of what it started; False if it did not run."""
    members = [psutil.Process(pid) for pid in psutil.pids() if _is_ours(folder, service, pid)]
    if not members:
        return False
    first = [process for process in members if process.pid == service.session]
    _end(first or members, {*members, *_descendants(members)})
    return True


def stop_runs(folder: Path, port: int) -> int:
    """End what the workers of this port started, in sessions of their own or not; how many processes that were.

    They get SIGTERM first: a training run saves what it has, if it can within the time.
    """
    spared = {process.pid for process in (psutil.Process(), *psutil.Process().parents())}
    ended = set[int]()
    deadline = time.monotonic() + 3 * STOP_SECONDS
    while time.monotonic() < deadline:  # one that ends may just have started another
        found = {
            process
            for process in psutil.process_iter()
            if process.pid not in spared and _has(process, mark(folder, port))
        }
        if not found:
            break
        ended |= {process.pid for process in found}
        _end(found, found)
    return len(ended)


def _end(asked: Iterable[psutil.Process], family: set[psutil.Process]) -> None:
    for process in asked:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(list(family), timeout=STOP_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_SECONDS)


def _descendants(processes: Iterable[psutil.Process]) -> set[psutil.Process]:
    found = set[psutil.Process]()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.update(process.children(recursive=True))
    return found


def _is_ours(folder: Path, service: Service, pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        return (
            os.getsid(pid) == service.session
            and process.create_time() >= service.since - 5.0
            and _has(process, {"PREFECT_HOME": str(folder)})
        )
    except (psutil.Error, OSError):
        return False


def _has(process: psutil.Process, wanted: dict[str, str]) -> bool:
    """Whether a living process has these values in its environment."""
    try:
        environment = process.environ()
        alive = process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False
    return alive and all(environment.get(name) == value for name, value in wanted.items())
