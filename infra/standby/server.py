"""The standby process: imports once, then forks for each command that asks.

Each command gets a monitor (`monitor.py`), a child of the system, not of this process: ending the standby ends no run.
It stays single-threaded, because a fork copies locks in whatever state other threads left them.

It never runs an old version of the code. What is in memory is compared with the disk at every request
(`circumstances.py`); where it differs, the command runs by itself, and this process starts again.
"""

from __future__ import annotations

import gc
import json
import os
import selectors
import signal
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from infra.launch import warm
from infra.standby.circumstances import Code, code
from infra.standby.client import SOCKET
from infra.standby.monitor import Command, forked, monitor

REQUEST_SECONDS = 5.0
READY = "standby.json"


class Standby:
    """Serves commands of this user until SIGTERM. Call `serve` when everything is imported.

    packages: folders of our own code. mine, before: `circumstances`, and `code`, before anything was imported. command:
    runs the arguments of a command in a forked process, with its environment, and returns the exit code.
    """

    def __init__(
        self, folder: Path, packages: Sequence[Path], mine: dict[str, Any], before: Code, command: Command
    ) -> None:
        self._folder, self._packages, self._command = folder, packages, command
        self._mine = json.loads(json.dumps(mine))
        self._code = code(packages) | before
        self._stopping = False

    def serve(self) -> None:
        """Returns on SIGTERM. Raises OSError where the socket cannot be made."""
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        gc.collect()
        gc.freeze()  # what is loaded stays, and its memory pages stay shared
        path = self._folder / SOCKET
        path.unlink(missing_ok=True)
        here = Path.cwd()
        os.chdir(self._folder)  # a path of a socket has 107 characters at most
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(SOCKET)
            os.chdir(here)
            path.chmod(0o600)
            listener.listen(8)
            memory = psutil.Process().memory_full_info().uss / 1e6
            ready = self._folder / READY
            partial = ready.with_suffix(".part")
            partial.write_text(json.dumps({"pid": os.getpid(), "memory_mb": round(memory)}), encoding="utf-8")
            partial.replace(ready)
            with selectors.DefaultSelector() as selector:
                selector.register(listener, selectors.EVENT_READ)
                while not self._stopping:
                    for _ in selector.select(0.5):
                        self._accept(listener)
        path.unlink(missing_ok=True)
        ready.unlink(missing_ok=True)

    def _on_stop(self, number: int, frame: object) -> None:
        self._stopping = True

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        files: list[int] = []
        with connection:
            try:
                _require_same_user(connection)
                connection.settimeout(REQUEST_SECONDS)
                _, files, _, _ = socket.recv_fds(connection, 1, 3)
                request = json.loads(connection.makefile("rb").readline())
                if refusal := self._refusal(request):
                    connection.sendall(json.dumps({"refused": refusal}).encode() + b"\n")
                else:
                    between = forked(lambda: self._start_monitor(listener, connection, files, request))
                    os.waitpid(between, 0)
                    connection.sendall(json.dumps({"ready": True}).encode() + b"\n")
            except (OSError, ValueError, KeyError, TypeError) as error:
                warm.say(f"a request failed: {type(error).__name__}: {error}")
            finally:
                for file in files:
                    os.close(file)

    def _refusal(self, request: dict[str, Any]) -> str:
        """Why the command has to run by itself; empty where a fork would be the same."""
        if code(self._packages) != self._code:
            (self._folder / SOCKET).unlink(missing_ok=True)
            (self._folder / READY).unlink(missing_ok=True)
            self._stopping = True
            self.changed = True
            return self._say("the code has changed since it was imported: starting again")
        differing = [name for name, value in self._mine.items() if request["circumstances"].get(name) != value]
        if differing:
            return self._say(f"other {', '.join(differing)} than this process")
        return ""

    def _say(self, refusal: str) -> str:
        warm.say(refusal)
        return refusal

    changed = False
    """Whether it stopped because the code in memory is not the code on disk."""

    def _start_monitor(
        self, listener: socket.socket, connection: socket.socket, files: list[int], request: dict[str, Any]
    ) -> None:
        """Fork the command's monitor from a process that ends at once, so that it is a child of the system."""
        listener.close()  # else clients would wait there for a run, once this process is gone
        forked(lambda: monitor(connection, files, request, self._command))


def _require_same_user(connection: socket.socket) -> None:
    _, user, _ = struct.unpack(
        "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    if user != os.getuid():
        raise PermissionError(f"user {user} is not the one this process belongs to")
