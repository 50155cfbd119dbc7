"""A Prefect server (with its UI) and a worker on this machine, in the background: `forgeline up` and `forgeline down`.

Everything lives under `home/prefect`: Prefect's own folder with its SQLite database (unless a Postgres is named),
`services.json` (which processes were started: `services.py`), and a log per service. Both listen on 127.0.0.1 only, and
are started in sessions of their own, so that closing the terminal leaves them running. A server that crashed is started
again where it was, with the grace that its runs need (`grace.py`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from infra.errors import StageError, UsageError
from infra.local_garbage import KEEP_DAYS
from infra.platform import grace, services
from infra.platform.health import answers
from infra.platform.postgres import Postgres, require_ready
from infra.platform.services import Service

HOST = "127.0.0.1"
POOL = "forgeline"
PORT = 4200
START_SECONDS = 180.0
PREFECT = [sys.executable, "-m", "prefect"]
STANDBY = [sys.executable, "-P", "-m", "flows.standby"]
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


def prefect_home(home: Path) -> Path:
    """PREFECT_HOME of everything Forgeline starts for `home`."""
    return home.resolve() / "prefect"


def up(home: Path, port: int | None = None, database: Postgres | None = None, *, standby: bool = False) -> Platform:
    """Start the server and a worker unless they run, and return once both are ready (about 10 s).

    port: None is where the server was, or 4200. database: where the server keeps its data, instead of SQLite. standby:
    start the process that keeps everything imported, too (`infra/standby/server.py`); it is not waited for. Raises
    UsageError if the port is taken or another server of ours runs, StageError if a service dies; for what else see
    `require_ready`.
    """
    folder = prefect_home(home)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        known, started = services.read(folder), dict[str, subprocess.Popen[bytes]]()
        server, worker = known.get("server"), known.get("worker")
        runs = server is not None and services.lives(folder, server)
        if server and (database or not runs):
            _require_same(server, database)
        if server and runs:
            if port not in (None, server.port):
                where = f"http://{HOST}:{server.port}"
                raise UsageError(f"a server runs at {where} already", hint="Stop it first: forgeline down.")
            port = server.port
        else:
            if server:
                services.stop(folder, server)  # what it left behind may hold the port
            port = port or (server.port if server else PORT)
            _require_free(port, server)
            if database is not None:
                require_ready(database)
            grace.grant(folder, database)
            command = [*PREFECT, "server", "start", "--host", HOST, "--port", str(port), "--analytics-off"]
            server, started["server"] = _start(folder, "server", command, port, known, database)
        api = api_url(port)
        _await(folder, "server", server, started.get("server"), f"{api}/health")
        if worker and worker.port != port:  # it, and all it runs, speak to an address where nobody is
            services.stop(folder, worker)
            services.stop_runs(folder, worker.port)
        if not worker or not services.lives(folder, worker):
            command = [*PREFECT, "worker", "start", "--pool", POOL, "--type", "process", "--name", f"{POOL}-{port}"]
            worker, started["worker"] = _start(folder, "worker", command, port, known)
        if standby and ("standby" not in known or not services.lives(folder, known["standby"])):
            environment = _environment(folder, port)
            added = sorted(name for name, value in environment.items() if os.environ.get(name) != value)
            command = [*STANDBY, str(folder), ",".join(added)]
            _, started["standby"] = _start(folder, "standby", command, port, known)
        _await(folder, "worker", worker, started.get("worker"), f"{api}/work_pools/{POOL}")
    return Platform(api, folder, tuple(started), server.database)


def api_url(port: int) -> str:
    return f"http://{HOST}:{port}/api"


def _require_same(server: Service, database: Postgres | None) -> None:
    """A server that is started on another database has forgotten all deployments: only after a `down`."""
    if str(database or "") != server.database:
        what = f"the server that `up` started keeps its data in {server.database or 'SQLite'}"
        raise UsageError(what, hint="Give the same --postgres as before; to change it, forgeline down comes first.")


def down(home: Path) -> str:
    """Stop what `up` started for this `home`, and nothing else; returns a sentence for the user."""
    folder = prefect_home(home)
    if not (folder / services.RECORD).exists():
        return "nothing was running"
    with _locked(folder):
        known = services.read(folder)
        # The worker before the server: it reports that it is going. Then its runs, which have sessions of their own.
        stopped: list[str] = [
            name for name in ("standby", "worker") if name in known and services.stop(folder, known[name])
        ]
        runs = [services.stop_runs(folder, port) for port in {service.port for service in known.values()}]
        stopped += ["what it ran"] if any(runs) else []
        stopped += ["server"] if "server" in known and services.stop(folder, known["server"]) else []
        (folder / services.RECORD).unlink(missing_ok=True)
    return f"stopped {' and '.join(stopped)}" if stopped else "nothing was running"


def running(home: Path) -> str | None:
    """API URL of the server `up` started for this `home`, None if it does not run or does not answer."""
    folder = prefect_home(home)
    server = services.read(folder).get("server")
    if server is None or not services.lives(folder, server):
        return None
    api = api_url(server.port)
    return api if answers(f"{api}/health") else None


def _environment(folder: Path, port: int) -> dict[str, str]:
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "PREFECT_PROFILE")
    }
    return {
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        # Each wait doubles: a run outlives eight minutes without a server, and then reports how it ended.
        "PREFECT_CLIENT_MAX_RETRIES": "8",
        # A server that forgets its leases when it is started again ends the runs that hold them.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # Flow runs that ended so long ago leave the database; by default Prefect keeps them for ever.
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(int(KEEP_DAYS * 86400)),
        **inherited,
        "PREFECT_HOME": str(folder),
        "PREFECT_PROFILES_PATH": str(folder / "profiles.toml"),
        "PREFECT_API_URL": api_url(port),
        # Without it the UI of a server on another port asks :4200.
        "PREFECT_SERVER_UI_API_URL": api_url(port),
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


def _start(
    folder: Path,
    name: str,
    command: list[str],
    port: int,
    known: dict[str, Service],
    database: Postgres | None = None,
) -> tuple[Service, subprocess.Popen[bytes]]:
    since = time.time()
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env=_environment(folder, port)
            | (database.environment() if database else {})
            | (services.mark(folder, port) if name == "worker" else {}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    known[name] = Service(process.pid, since, port, str(database or ""))
    services.write(folder, known)
    return known[name], process


def _await(folder: Path, name: str, service: Service, process: subprocess.Popen[bytes] | None, url: str) -> None:
    """process: of a service that was started just now. Raises StageError if it dies or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while not answers(url):
        ended = None
        if process is None:
            ended = None if services.lives(folder, service) else "ended"
        elif process.poll() is not None:
            ended = f"ended with exit code {process.returncode}"
        if ended or time.monotonic() > deadline:
            log = folder / f"{name}.log"
            tail = log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
            what = f"the Prefect {name} {ended or f'was not ready within {START_SECONDS:.0f} s'}"
            raise StageError(what, where=str(log), hint=f"Its last lines:\n{tail}")
        time.sleep(0.2)


def _require_free(port: int, before: Service | None) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            what = f"port {port} is not free: {error.strerror}"
            if before is not None and before.port == port:
                what += ". The server was there before it ended, and what still runs looks for it there"
            raise UsageError(what, hint=f"Choose another: forgeline up --port {port + 1}.") from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two `up` or `down` at once take turns."""
    with (folder / "services.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
