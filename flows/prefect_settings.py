"""Settings that must stand before Prefect is imported, and where its log goes afterwards.

Which API: PREFECT_API_URL if set, else the server `forgeline up` started here, else an ephemeral one. Ephemeral servers
share one database in this folder, so that `forgeline up` shows past runs; but two of them at once would lock each other
out of SQLite, so the second of two simultaneous runs gets a database of its own.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.platform import prefect_server

DEFAULTS = {
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_TASKS_DEFAULT_PERSIST_RESULT": "false",
    "DO_NOT_TRACK": "1",
}


def use_running_server(home: Path) -> None:
    """Point Prefect, before it is imported, to the server `forgeline up` started here; what the user has set stays."""
    url = prefect_server.running(home)
    if url:
        os.environ.setdefault("PREFECT_API_URL", url)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


@contextmanager
def prefect_environment(home: Path, run_folder: Path) -> Iterator[None]:
    """Set Prefect's environment for the duration of a run."""
    use_running_server(home)
    if "PREFECT_API_URL" in os.environ or "PREFECT_HOME" in os.environ:
        yield
        return
    shared = prefect_server.prefect_home(home)
    shared.mkdir(parents=True, exist_ok=True)
    with (shared / "ephemeral.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            chosen = shared
        except BlockingIOError:
            chosen = run_folder / "prefect"
        os.environ["PREFECT_HOME"] = str(chosen.resolve())
        yield


def log_to_file(path: Path) -> None:
    """Send the console log of Prefect and Dask to a file: the terminal belongs to the live view."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    names = [n for n in logging.root.manager.loggerDict if n.startswith(("prefect", "distributed"))]
    for logger in (logging.getLogger(), *(logging.getLogger(n) for n in names)):
        for console in [h for h in logger.handlers if type(h).__name__ in ("PrefectConsoleHandler", "StreamHandler")]:
            logger.removeHandler(console)
            logger.addHandler(handler)
