"""A server that was away has heard nobody: what would run out because of that gets its time again before it starts.

Prefect keeps two clocks of its runs. One says a run is dead that gave no sign of life (`automation_bucket`, in the
database); the other gives its place in a deployment's only slot to others (leases, as files beside the database). Both
stand still in a server that is dead, and have run out when it is back, before any run can speak to it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from infra.platform.postgres import Postgres, execute

SECONDS = 240.0
"""How long runs have to speak again: they beat twice a minute, and ask for an absent server after longer and longer."""
LEASE_SECONDS = 300.0
"""What a run asks for when it renews its lease."""
LEASES = "concurrency_leases"
WAITS_FOR = """
UPDATE automation_bucket SET "end" = {until} WHERE "end" < {until}
AND automation_id IN (SELECT id FROM automation WHERE CAST("trigger" AS TEXT) LIKE '%Proactive%')
"""
log = logging.getLogger(__name__)


def grant(folder: Path, database: Postgres | None, now: datetime | None = None) -> None:
    """Give all that waits for a sign of life its time again. folder: PREFECT_HOME of a server that does not run.

    A database that is not Prefect's yet, or of another version, is left as it is.
    """
    now = now or datetime.now(UTC)
    until = now + timedelta(seconds=SECONDS)
    if database is not None:
        fault = asyncio.run(execute(database, WAITS_FOR.format(until="$1"), until))
    else:
        fault = in_sqlite(folder / "prefect.db", until)
    if fault:
        log.info("the automations get no more time: %s", fault)
    _extend_leases(folder / LEASES, now + timedelta(seconds=LEASE_SECONDS))


def in_sqlite(path: Path, until: datetime) -> str:
    """Give the automations in this database their time; why that could not be, empty if it was."""
    if not path.exists():
        return ""
    written = until.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")  # as SQLAlchemy does
    try:
        with closing(sqlite3.connect(path, timeout=30.0)) as connection, connection:
            connection.execute(WAITS_FOR.format(until="?1"), (written,))
    except sqlite3.Error as error:
        return str(error)
    return ""


def _extend_leases(folder: Path, until: datetime) -> None:
    """Files of Prefect's own storage: one for each lease, and an index of when they run out."""
    if not folder.is_dir():
        return
    for path in folder.glob("*.json"):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if path.name == "expirations.json":
            data = {lease: max(str(end), until.isoformat()) for lease, end in data.items()}
        elif isinstance(data, dict) and "expiration" in data:
            data["expiration"] = max(str(data["expiration"]), until.isoformat())
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(data), encoding="utf-8")
        partial.replace(path)
