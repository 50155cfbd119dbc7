"""A Prefect server (with its UI) and a worker on this machine, in the background: `forgeline up` and `forgeline down`.

Everything lives under `home/prefect`: Prefect's own folder with its SQLite database (unless a Postgres is named),
`services.json` (which processes were started), and a log per service. Both listen on 127.0.0.1 only, and are started in
sessions of their own, so that closing the terminal leaves them running. A process counts as ours only if it belongs to
the recorded session, is not older than the record *and* carries our PREFECT_HOME in its environment: a process id that
the system gave to another program since is never touched.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from infra.errors import StageError, UsageError
from infra.platform.postgres import Postgres, require_ready

HOST = "127.0.0.1"
POOL = "forgeline"
START_SECONDS = 180.0
STOP_SECONDS = 10.0
LOG_TAIL_BYTES = 4096


@dataclass(frozen=True)
class Platform:
    """What `up` leaves running. `started`: the services this call started, empty if all ran already."""

    api_url: str
    logs: Path
    started: tuple[str, ...]
    database: str = ""

    @property
    def ui_url(self) -> str:
        return self.api_url.removesuffix("/api")

    def __str__(self) -> str:
        state = f"started {' and '.join(self.started)}" if self.started else "already running"
        return f"Prefect UI {self.ui_url} ({state}; {self.database or 'SQLite'}; logs in {self.logs})"


@dataclass(frozen=True)
class _Service:
    """A background process as recorded: the id of its session, and when it was started (seconds since the epoch).

    database: the Postgres of a server, without its password; empty: SQLite.
    """

    session: int
    since: float
    port: int
    database: str = ""


def prefect_home(home: Path) -> Path:
    """PREFECT_HOME of everything Forgeline starts for `home`."""
    return home.resolve() / "prefect"


def up(home: Path, port: int = 4200, database: Postgres | None = None) -> Platform:
    """Start the server and a worker unless they run, and return once both are ready (about 10 s).

    database: where the server keeps its data, instead of SQLite. Raises UsageError if the port is taken or another
    server of ours runs, StageError if a service dies; for what else see `require_ready`.
    """
    folder = prefect_home(home)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        services, started = _read(folder), list[str]()
        server = services.get("server")
        runs = server is not None and bool(_members(folder, server))
        if server and (database or not runs):
            _require_same(server, database)
        if server and runs:
            if server.port != port and port != 4200:
                where = f"http://{HOST}:{server.port}"
                raise UsageError(f"a server runs at {where} already", hint="Stop it first: forgeline down.")
            port = server.port
        else:
            _require_free(port)
            if database is not None:
                require_ready(database)
            command = ["server", "start", "--host", HOST, "--port", str(port), "--analytics-off"]
            server = _start(folder, "server", command, port, services, database)
            started.append("server")
        api = f"http://{HOST}:{port}/api"
        _await(folder, "server", server, f"{api}/health")
        worker = services.get("worker")
        if not worker or not _members(folder, worker):
            command = ["worker", "start", "--pool", POOL, "--type", "process", "--name", f"{POOL}-{port}"]
            worker = _start(folder, "worker", command, port, services)
            started.append("worker")
        _await(folder, "worker", worker, f"{api}/work_pools/{POOL}")
    return Platform(api, folder, tuple(started), server.database)


def _require_same(server: _Service, database: Postgres | None) -> None:
    """A server that is started on another database has forgotten all deployments: only after a `down`."""
    if str(database or "") != server.database:
        what = f"the server that `up` started keeps its data in {server.database or 'SQLite'}"
        raise UsageError(what, hint="Give the same --postgres as before; to change it, forgeline down comes first.")


def down(home: Path) -> str:
    """Stop what `up` started for this `home`, and nothing else; returns a sentence for the user."""
    folder = prefect_home(home)
    if not (folder / "services.json").exists():
        return "nothing was running"
    with _locked(folder):
        services = _read(folder)
        # The worker first: it reports to the server that it is going.
        stopped = [name for name in ("worker", "server") if name in services and _stop(folder, services[name])]
        (folder / "services.json").unlink(missing_ok=True)
    return f"stopped {' and '.join(stopped)}" if stopped else "nothing was running"


def running(home: Path) -> str | None:
    """API URL of the server `up` started for this `home`, None if it does not run or does not answer."""
    folder = prefect_home(home)
    server = _read(folder).get("server")
    if server is None or not _is_ours(folder, server, server.session):
        return None
    api = f"http://{HOST}:{server.port}/api"
    return api if _answers(f"{api}/health") else None


def _environment(folder: Path, port: int) -> dict[str, str]:
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "PREFECT_PROFILE")
    }
    return {
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        # Each wait doubles: a run outlives eight minutes without a server, and then tells it how it ended.
        "PREFECT_CLIENT_MAX_RETRIES": "8",
        **inherited,
        "PREFECT_HOME": str(folder),
        "PREFECT_PROFILES_PATH": str(folder / "profiles.toml"),
        "PREFECT_API_URL": f"http://{HOST}:{port}/api",
        # Without it the UI of a server on another port asks :4200.
        "PREFECT_SERVER_UI_API_URL": f"http://{HOST}:{port}/api",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


def _start(
    folder: Path,
    name: str,
    command: list[str],
    port: int,
    services: dict[str, _Service],
    database: Postgres | None = None,
) -> _Service:
    since = time.time()
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *command],
            env=_environment(folder, port) | (database.environment() if database else {}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    services[name] = _Service(process.pid, since, port, str(database or ""))
    partial = folder / "services.json.part"
    partial.write_text(json.dumps({name: vars(service) for name, service in services.items()}), encoding="utf-8")
    partial.replace(folder / "services.json")
    return services[name]


def _await(folder: Path, name: str, service: _Service, url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(url):
        dead = not _members(folder, service)
        if dead or time.monotonic() > deadline:
            log = folder / f"{name}.log"
            tail = log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
            what = f"the Prefect {name} " + ("ended" if dead else f"was not ready within {START_SECONDS:.0f} s")
            raise StageError(what, where=str(log), hint=f"Its last lines:\n{tail}")
        time.sleep(0.2)


def _answers(url: str) -> bool:
    asked = urllib.request.Request(url)  # noqa: S310 - built from HOST above
    if login := os.environ.get("PREFECT_API_AUTH_STRING"):
        asked.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    try:
        with urllib.request.urlopen(asked, timeout=3.0):  # noqa: S310
            return True
    except (OSError, urllib.error.URLError):
        return False


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            what = f"port {port} is not free: {error.strerror}"
            raise UsageError(what, hint=f"Choose another: forgeline up --port {port + 1}.") from error


def _read(folder: Path) -> dict[str, _Service]:
    try:
        data = json.loads((folder / "services.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {name: _Service(**service) for name, service in data.items()}


def _is_ours(folder: Path, service: _Service, pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        return (
            os.getsid(pid) == service.session
            and process.status() != psutil.STATUS_ZOMBIE
            and process.create_time() >= service.since - 5.0
            and process.environ().get("PREFECT_HOME") == str(folder)
        )
    except (psutil.Error, OSError):
        return False


def _members(folder: Path, service: _Service) -> list[psutil.Process]:
    """Living processes of the service, its first one or not."""
    found = []
    for pid in psutil.pids():
        if _is_ours(folder, service, pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
    return found


def _stop(folder: Path, service: _Service) -> bool:
    """SIGTERM to the service, SIGKILL to what is left of it and of what it started; False if it did not run."""
    members = _members(folder, service)
    if not members:
        return False
    family = set(members)
    for process in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            family.update(process.children(recursive=True))
    first = next((process for process in members if process.pid == service.session), None)
    for process in [first] if first else members:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(list(family), timeout=STOP_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_SECONDS)
    return True


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two `up` or `down` at once take turns."""
    with (folder / "services.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
