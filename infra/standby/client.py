"""A command that lets the standby run it: hands over its arguments, environment, folder and terminal, and waits.

    code = run_there(home, ["run", "p.yaml"])         # None: nobody is there, or it would not be the same

Signals that end a command go on to the process that runs it, and that process ends when this one is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from infra.standby.circumstances import circumstances, settings_here

SOCKET = "standby.sock"
ANSWER_SECONDS = 5.0
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
KILLED = 128 + int(signal.SIGKILL)


def address(folder: Path) -> str:
    """A path below the 108 characters that the kernel allows, whatever the folder is called."""
    path = folder / SOCKET
    relative = os.path.relpath(path)
    return min(str(path), relative, key=len)


def run_there(folder: Path, arguments: list[str]) -> int | None:
    """The exit code of the command, run by the standby of this folder; None where it has to be run here."""
    connection = _connected(folder)
    if connection is None or settings_here():
        return None
    with connection:
        request = {
            "arguments": arguments,
            "environment": dict(os.environ),
            "folder": str(Path.cwd()),
            "umask": _umask(),
            "circumstances": circumstances(dict(os.environ)),
        }
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        try:
            connection.settimeout(ANSWER_SECONDS)
            socket.send_fds(connection, [b"R"], [0, 1, 2])
            connection.sendall(json.dumps(request).encode() + b"\n")
            answers = connection.makefile("rb")
            if "ready" not in _answer(answers.readline()):
                return None
        except OSError:  # no word by now: it begins nothing unless it is asked to go on
            return None
        connection.settimeout(None)
        return _followed(connection, answers)


def _connected(folder: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address(folder))
    except OSError:
        connection.close()
        return None
    return connection


def _followed(connection: socket.socket, answers: Any) -> int:
    """Let it begin, pass signals on meanwhile, and wait for the exit code."""

    def pass_on(number: int, frame: object) -> None:
        with contextlib.suppress(OSError):  # it has just ended
            connection.sendall(bytes([number]))

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        connection.sendall(b"G")
        return int(_answer(answers.readline()).get("exit", KILLED))
    except OSError:
        return KILLED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _answer(line: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(line) if line.strip() else {}
    return found


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
