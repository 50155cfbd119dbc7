"""Prefect's SQLite database of this machine: how large it is, how much of it is old. Reads only, and knows no Prefect.

A server that `forgeline up` started drops flow runs by their age itself; the database of the temporary servers that
runs start, and of a server that is down, is cleaned by `flows/prefect_garbage.py`.
"""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")


@dataclass(frozen=True)
class Database:
    """The file, its size in bytes, its flow runs, and those of them that ended before a given age."""

    path: Path
    bytes: int
    runs: int
    old: int


def look(folder: Path, seconds: float) -> Database | None:
    """What is in the database below PREFECT_HOME `folder`; None where there is none."""
    path = folder / "prefect.db"
    if not path.is_file():
        return None
    size = sum(part.stat().st_size for part in folder.glob("prefect.db*"))
    before = (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M:%S")
    runs = old = 0
    marks = ", ".join("?" * len(ENDED))
    query = f"SELECT count(*) FROM flow_run WHERE end_time < ? AND state_type IN ({marks})"  # noqa: S608
    # Locked, or of another version of Prefect: its size is all that can be known.
    with contextlib.suppress(sqlite3.Error), contextlib.closing(_opened(path)) as database:
        runs = int(database.execute("SELECT count(*) FROM flow_run").fetchone()[0])
        old = int(database.execute(query, (before, *ENDED)).fetchone()[0])
    return Database(path, size, runs, old)


def _opened(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
