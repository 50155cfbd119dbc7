"""The process beside a command that was forked from the standby: starts it, passes signals on, reports how it ended.

Beside the command it forks a warm server for the command's jobs (`infra/launch/warm.py`), whose other end the command
holds. A command ends as it would without the standby: by the signals its client gets, and when its client is killed.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

from infra.launch import warm
from infra.launch.handed import HANDED, Handed

Command = Callable[[list[str]], int]
GO_SECONDS = 10.0


def monitor(connection: socket.socket, files: list[int], request: dict[str, Any], command: Command) -> None:
    """Run the command once the client says so, and send the client its exit code. For a process of its own.

    files: standard input, output and error of the command.
    """
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    connection.settimeout(GO_SECONDS)
    if connection.recv(1) != b"G":
        return  # the client has given up, and runs the command itself
    ours, theirs = socket.socketpair()

    def become_server() -> None:
        for file in files:
            os.close(file)
        connection.close()
        ours.close()
        _take_over(request, warm.ENVIRONMENT)
        warm.serve(theirs)

    server = forked(become_server)

    def become_command() -> None:
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        _open_streams()
        connection.close()
        theirs.close()
        os.set_inheritable(ours.fileno(), False)
        _take_over(request, {HANDED: str(Handed(ours.detach(), server))})
        sys.argv = ["forgeline", *request["arguments"]]
        sys.exit(command(request["arguments"]))

    child = forked(become_command)
    for file in files:
        os.close(file)
    ours.close()
    theirs.close()
    _follow(connection, child)


def _follow(connection: socket.socket, child: int) -> None:
    connection.setblocking(False)
    ended = os.pidfd_open(child)
    with selectors.DefaultSelector() as selector:
        selector.register(ended, selectors.EVENT_READ)
        selector.register(connection, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is connection:
                    numbers = connection.recv(64)
                    for number in numbers or [signal.SIGTERM]:
                        os.kill(child, number)  # not reaped yet, so the id is still its own
                    if not numbers:
                        selector.unregister(connection)
                else:
                    _, status = os.waitpid(child, 0)
                    code = os.waitstatus_to_exitcode(status)
                    answer = {"exit": code if code >= 0 else 128 - code}
                    connection.setblocking(True)
                    connection.sendall(json.dumps(answer).encode() + b"\n")
                    return


def _open_streams() -> None:
    """As the interpreter does when it starts: what they were opened for was another kind of file."""
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", 1, errors="backslashreplace", closefd=False)  # type: ignore[misc]  # noqa: SIM115


def _take_over(request: dict[str, Any], more: dict[str, str]) -> None:
    """Become what a process started with these settings would be."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    accelerator = {name: value for name, value in os.environ.items() if name == "DS_ACCELERATOR"}
    os.environ.clear()
    os.environ.update({**(accelerator if more is warm.ENVIRONMENT else {}), **request["environment"], **more})
    os.umask(request["umask"])
    os.chdir(request["folder"])


def forked(become: Callable[[], object]) -> int:
    """The id of a child that ends after `become`."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        become()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
