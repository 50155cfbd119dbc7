"""Settings that must stand before Prefect is imported, and where its log goes afterwards.

Which API: PREFECT_API_URL if set, else the server `forgeline up` started here, else a temporary one. Temporary servers
share one database in this folder, so that `forgeline up` shows past runs; but two of them at once would lock each other
out of SQLite, so the second of two simultaneous runs gets a database of its own.
"""

from __future__ import annotations

import atexit
import fcntl
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from infra.errors import StageError, TransientError
from infra.platform import prefect_server
from infra.platform.temporary_server import TemporaryServer

PROBE_SECONDS = 2.0
CONSOLES = ("PrefectConsoleHandler", "_SafeStreamHandler", "StreamHandler")
"""Handlers that write to the terminal: Prefect's own, that of its event loop (it speaks at the end), plain ones."""
_temporary: TemporaryServer | None = None
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
    """Set Prefect's environment for the duration of a run; where there is no server, start one that this process keeps.

    `wait_for_temporary` before the first call of the API.
    """
    global _temporary
    use_running_server(home)
    if "PREFECT_API_URL" in os.environ or any(_names_a_server(path) for path in _config_files()):
        yield
        return
    with _database(home, run_folder):
        _temporary = TemporaryServer(run_folder / "prefect-server.log")
        atexit.register(_temporary.close)
        os.environ["PREFECT_API_URL"] = _temporary.api_url
        if "prefect" in sys.modules:  # which has read its settings
            from prefect.context import refresh_global_settings_context

            refresh_global_settings_context()
        yield


@contextmanager
def _database(home: Path, run_folder: Path) -> Iterator[None]:
    """PREFECT_HOME, and with it the database, of temporary servers; what the user has set stays."""
    if "PREFECT_HOME" in os.environ:
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


def has_temporary() -> bool:
    """Whether the server is one that ends with this process, and so has no page to link to."""
    return _temporary is not None


def wait_for_temporary() -> None:
    """Return when the temporary server answers, if this process has one. Raises StageError where it does not."""
    if _temporary is not None:
        _temporary.wait()


def require_server(home: Path) -> None:
    """As `use_running_server`, for what cannot do without one; says so at once, before Prefect is imported.

    Raises StageError where none is configured, TransientError where nobody listens.
    """
    use_running_server(home)
    url = os.environ.get("PREFECT_API_URL")
    if not url and not any(_names_a_server(path) for path in _config_files()):
        hint = "Start one here: forgeline up."
        raise StageError("there is no Prefect server to talk to", where="PREFECT_API_URL", hint=hint)
    if url and not _listens(url):
        raise TransientError("nobody listens there", where=url, hint="Is it running? Start one here: forgeline up.")


def _listens(url: str) -> bool:
    """Whether there is somebody; one who is slow to answer is."""
    found = urlsplit(url)
    port = found.port or (443 if found.scheme == "https" else 80)
    try:
        socket.create_connection((found.hostname or "", port), timeout=PROBE_SECONDS).close()
    except TimeoutError:
        return True
    except OSError:
        return False
    return True


def _config_files() -> list[Path]:
    """Where else Prefect looks for its settings."""
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH", home / "profiles.toml"))
    return [profiles, Path(".env"), Path("prefect.toml"), Path("pyproject.toml")]


def _names_a_server(path: Path) -> bool:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "PREFECT_API_URL" in text or (path.suffix == ".toml" and "prefect" in text + path.name and "api" in text)


def log_to_file(path: Path) -> None:
    """Send the console log of Prefect and Dask to a file: the terminal belongs to the live view."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for logger in (logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)):
        for console in [h for h in logger.handlers if type(h).__name__ in CONSOLES]:
            logger.removeHandler(console)
            logger.addHandler(handler)
