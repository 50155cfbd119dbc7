"""Old flow runs leave Prefect's SQLite database, with their tasks, logs and artifacts, and the file gets smaller.

    python -m flows.prefect_garbage           # with PREFECT_HOME and the age in Prefect's own settings

It is Prefect's own clean-up, run once, in a process of its own because Prefect reads its settings when it is imported.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
from pathlib import Path

from infra.errors import StageError
from infra.platform import prefect_server
from infra.prefect_database import Database, look

RETENTION = "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD"
LEAST = 3601.0
"""Seconds; Prefect takes no shorter age."""
SECONDS = 600.0


def clean(home: Path, seconds: float) -> Database | None:
    """Remove flow runs that ended so long ago; returns what there was before, None where nothing was done.

    Nothing is done while a server of ours uses the database: it drops old runs itself. Raises StageError.
    """
    folder = prefect_server.prefect_home(home)
    before = look(folder, max(seconds, LEAST))
    if before is None or not before.old or prefect_server.running(home):
        return None
    with (folder / "ephemeral.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None  # a run uses it
        settings = {"PREFECT_HOME": str(folder), RETENTION: str(max(seconds, LEAST)), "PREFECT_LOGGING_LEVEL": "ERROR"}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        done = subprocess.run(
            [sys.executable, "-P", "-m", "flows.prefect_garbage"],
            env={**inherited, **settings, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)},
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise StageError(f"old flow runs could not be removed: {last[:200]}", where=str(before.path))
    return before


def main() -> None:
    """Clean the database that Prefect's settings name."""
    import sqlite3

    from prefect.server.database import provide_database_interface
    from prefect.server.services.db_vacuum import vacuum_old_flow_runs

    asyncio.run(vacuum_old_flow_runs(db=provide_database_interface()))
    connection = sqlite3.connect(Path(os.environ["PREFECT_HOME"], "prefect.db"), isolation_level=None)
    connection.execute("VACUUM")
    connection.close()


if __name__ == "__main__":
    main()
