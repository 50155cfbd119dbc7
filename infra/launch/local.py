"""The local launcher: jobs on this machine, forked from warm servers (`infra/launch/warm.py`).

    launcher = LocalLauncher(folder=run_folder)
    launcher.prestart(warm=True)              # imports torch in the background
    job = launcher.submit(JobSpec(name="base", folder=folder, ranks=2, warm=True))
    code = job.wait()
    launcher.close()

There are two servers: one that has torch and DeepSpeed for `warm` jobs and a light one for all others, each started
when first needed, so that preparing data never waits for torch. This process only starts them with `subprocess`; it
never forks, because it has threads. Every method may be called from any thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.errors import StageError
from infra.launch.handed import Handed, Process, handed
from infra.launch.launcher import JobSpec
from infra.launch.network import interface_towards
from infra.launch.silence import SILENCE_SECONDS, Silence
from infra.launch.warm import ENVIRONMENT

LOST = -int(signal.SIGKILL)
LOG_TAIL_BYTES = 8192
# Short, so that an exception thrown into the waiting thread (a cancelled Prefect task) gets in.
POLL_SECONDS = 0.5


class LocalJob:
    """A job of the local launcher; see `JobHandle`."""

    def __init__(self, spec: JobSpec, connection: socket.socket, server: _Server) -> None:
        self.spec = spec
        self.pid: int | None = None
        self.reason = ""
        self._connection, self._server = connection, server
        self._exit: int | None = None
        self._unread = b""
        self._silence = Silence(server.process.pid)
        self._reading = threading.Lock()

    def wait(self, timeout: float | None = None) -> int | None:
        """Exit code once every process of the job is gone; see `JobHandle.wait`.

        A negative code with a `reason` that names the server or the supervisor means that the job's own processes were
        not to blame (they were ended with it): another attempt may work. One of the two that gives no sign of life
        (`infra/launch/silence.py`) is killed, so that nobody waits for it for ever.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._exit is None:
            left = POLL_SECONDS if deadline is None else min(POLL_SECONDS, deadline - time.monotonic())
            if self._reading.acquire(timeout=max(0.0, left)):
                try:
                    if self._exit is None:
                        self._read(max(0.0, left))
                        self._end_if_silent()
                finally:
                    self._reading.release()
            if deadline is not None and time.monotonic() >= deadline:
                break
        return self._exit

    def cancel(self, grace: float = 5.0) -> None:
        """See `JobHandle.cancel`. SIGTERM goes to the ranks; what they started is killed after them."""
        if self._exit is not None:
            return
        with contextlib.suppress(OSError):  # the supervisor has just gone; wait() finds that out
            self._connection.sendall(f"cancel {grace}\n".encode())
        if not self._server.ready():
            # Whoever is forked later finds the request cancelled and starts no rank.
            self._end(-int(signal.SIGTERM), "cancelled before it started")
        if self.wait(grace + 10.0) is None:
            # The open connection proves that the supervisor's id has not been given to another process.
            self.wait(0)
            if self._exit is None and self.pid is not None:
                os.killpg(self.pid, signal.SIGKILL)
                self.wait(5.0)

    def logs(self) -> str:
        """The last few kilobytes of the job's log; empty if it never wrote one."""
        try:
            with self.spec.log.open("rb") as stream:
                start = stream.seek(max(0, stream.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
                if start:
                    stream.readline()  # the rest of a line
                return stream.read().decode(errors="replace")
        except FileNotFoundError:
            return self._server.log_tail() if self._exit == LOST else ""

    def _read(self, timeout: float) -> None:
        self._connection.settimeout(max(timeout, 0.001))
        try:
            chunk = self._connection.recv(65536)
        except TimeoutError:
            return
        except OSError:
            chunk = b""
        self._unread += chunk
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            message = json.loads(line)
            self.pid = message.get("pid", self.pid)
            if "exit" in message:
                self._end(message["exit"], message["reason"])
        if not chunk and self._exit is None:
            what = "supervisor was killed" if self._server.alive() else "warm server died"
            self._end(LOST, f"the {what}, and the job with it")

    def _end_if_silent(self) -> None:
        """Kill the supervisor, or the server that should start it, where it was stopped or hangs."""
        if self._exit is not None:
            return
        if self._silence.pid != (watched := self.pid or self._server.process.pid):
            self._silence = Silence(watched)
        if self._silence.too_long():
            os.kill(watched, signal.SIGKILL)  # the open connection, or our own child: the id is still theirs
            what = "supervisor" if self.pid else "warm server"
            self._end(LOST, f"the {what} gave no sign of life for {SILENCE_SECONDS:.0f} s and was killed")

    def _end(self, code: int, reason: str) -> None:
        if self._exit is None:
            self.reason, self._exit = reason, code
            self._connection.close()


@dataclass(frozen=True)
class _Key:
    """What the modules of a server depend on: how many are loaded, and the device DeepSpeed was loaded for."""

    preload: str
    accelerator: str | None


_TORCH, _LIGHT = _Key("torch", None), _Key("light", None)


class _Server:
    """One warm server process and the launcher's end of the socket pair."""

    def __init__(self, key: _Key, modules: Sequence[str], log: Path, given: Handed | None = None) -> None:
        self.log = log
        self._sending = threading.Lock()
        self._ready = False
        self.process: subprocess.Popen[bytes] | Process
        if given is not None:
            self._control, self.process = socket.socket(fileno=given.control), Process(given.pid)
            return
        self._control, theirs = socket.socketpair()
        environment = {**os.environ, **ENVIRONMENT}
        if key.accelerator:
            environment["DS_ACCELERATOR"] = key.accelerator
        with theirs, log.open("ab") as output:
            # -P: the folder the user stands in must not shadow installed packages.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "infra.launch.warm", key.preload, *modules],
                stdin=theirs.fileno(),
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )

    def alive(self) -> bool:
        return self.process.poll() is None

    def ready(self) -> bool:
        """Whether the imports are done; before that no job has been forked."""
        with self._sending:
            if not self._ready:
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    self._ready = self._control.recv(1, socket.MSG_DONTWAIT) == b"R"
            return self._ready

    def submit(self, spec: JobSpec) -> LocalJob:
        ours, theirs = socket.socketpair()
        request = {
            "name": spec.name,
            "folder": str(spec.folder.resolve()),
            "entry": spec.entry,
            "ranks": spec.ranks,
            "first_rank": spec.first_rank,
            "world_size": spec.world_size,
            "master_addr": spec.master_addr,
            "master_port": spec.master_port,
            "threads": spec.threads,
            "env": {**_network(spec), **spec.env},
        }
        with theirs, self._sending:
            socket.send_fds(self._control, [b"J"], [theirs.fileno()])
        ours.sendall(json.dumps(request).encode() + b"\n")
        return LocalJob(spec, ours, self)

    def log_tail(self) -> str:
        """Empty for a server that the standby forked: it writes into the standby's log."""
        return self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace") if self.log.exists() else ""

    def close(self) -> None:
        if not self.ready():
            self.process.kill()  # it has no jobs, and may be deep in an import
        self._control.close()
        try:
            self.process.wait(15.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _network(spec: JobSpec) -> dict[str, str]:
    """What gloo needs to know where a job has several nodes, unless the user has chosen an interface."""
    if spec.nodes == 1 or "GLOO_SOCKET_IFNAME" in {**os.environ, **spec.env}:
        return {}
    return {"GLOO_SOCKET_IFNAME": interface_towards(spec.master_addr)}


class LocalLauncher:
    """Runs jobs on this machine. How many run at once is the caller's business (`infra/launch/slots.py`).

    folder: where the servers write their own logs (`warm-light.log`, `warm-torch.log`); None: a temporary folder.
    preload: further modules the torch server imports before it forks, such as the training loop.
    """

    def __init__(self, folder: Path | None = None, preload: Sequence[str] = ()) -> None:
        self._temporary = None if folder else tempfile.TemporaryDirectory(prefix="forgeline-")
        self._folder = folder or Path(self._temporary.name if self._temporary else ".")
        self._preload = tuple(preload)
        self._servers: dict[_Key, _Server] = {}
        self._jobs: list[LocalJob] = []
        self._lock = threading.Lock()
        self._closed = False
        if (given := handed()) is not None:
            server = _Server(_TORCH, (), self._folder / "warm-torch.log", given)
            self._servers = dict.fromkeys((_TORCH, _LIGHT), server)  # what has torch can do all else

    def prestart(self, warm: bool = False) -> None:
        """Start the server for `warm` or for light jobs and return at once; it imports in the background."""
        with self._lock:
            self._server(self._key(warm, os.environ.get("DS_ACCELERATOR")))

    def ready(self, spec: JobSpec) -> bool:
        """Whether the job would start at once; starts the server if there is none. Raises StageError when closed."""
        with self._lock:
            server = self._server(self._server_of(spec))
        return server.ready() or not server.alive()  # one that died is `submit`'s business

    def submit(self, spec: JobSpec) -> LocalJob:
        """Start the job's ranks as soon as its server is ready; returns at once.

        Raises StageError when the server cannot be started or died twice, or when no network leads to node 0.
        """
        for _ in range(2):
            with self._lock:
                server = self._server(self._server_of(spec))
            try:
                job = server.submit(spec)
            except OSError:  # it died between two jobs: start another
                server.process.kill()
                server.process.wait()
                continue
            with self._lock:
                self._jobs = [other for other in self._jobs if other.wait(0) is None] + [job]
            return job
        raise StageError(
            "the process that starts jobs died twice",
            where=f"stage {spec.name}",
            hint=f"Its log is {server.log}:\n{server.log_tail()}",
        )

    def close(self) -> None:
        """End every job (SIGTERM, then SIGKILL) and every server; returns when all are gone."""
        with self._lock:
            self._closed = True
            jobs, servers = self._jobs, list(self._servers.values())
            self._jobs, self._servers = [], {}
        threads = [threading.Thread(target=job.cancel) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for server in {id(server): server for server in servers}.values():
            server.close()
        if self._temporary:
            self._temporary.cleanup()

    def _server_of(self, spec: JobSpec) -> _Key:
        return self._key(spec.warm, spec.env.get("DS_ACCELERATOR", os.environ.get("DS_ACCELERATOR")))

    def _key(self, warm: bool, accelerator: str | None) -> _Key:
        return _Key("torch", accelerator) if warm else _LIGHT

    def _server(self, key: _Key) -> _Server:
        if self._closed:
            raise StageError("the launcher is closed", hint="Submit jobs before close().")
        server = self._servers.get(key)
        if server is None or not server.alive():
            modules = (JobSpec.entry.partition(":")[0], *(self._preload if key.preload == "torch" else ()))
            log = self._folder / f"warm-{key.preload}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            server = self._servers[key] = _Server(key, modules, log)
        return server
