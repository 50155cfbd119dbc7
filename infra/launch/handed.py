"""A warm server that was forked for this process by the standby (`infra/standby/server.py`), and handed to it.

It is nobody's child here, so it is watched and ended by a file descriptor of the process.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from dataclasses import dataclass

HANDED = "WARM_SERVER_OF_FORGELINE"


@dataclass(frozen=True)
class Handed:
    """control: file descriptor of the launcher's end of the socket pair. pid: the server's."""

    control: int
    pid: int

    def __str__(self) -> str:
        return f"{self.control}:{self.pid}"


def handed() -> Handed | None:
    """The server, once: whoever asks owns it. What this process starts does not see it."""
    text = os.environ.pop(HANDED, None)
    return Handed(*map(int, text.split(":"))) if text else None


class Process:
    """The part of `subprocess.Popen` that a launcher needs, of a process that is not its child."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._fd: int | None = os.pidfd_open(pid)
        except ProcessLookupError:
            self._fd = None

    def poll(self) -> int | None:
        """None while it lives. How it ended, only its parent knows."""
        return 0 if self._fd is None or select.select([self._fd], [], [], 0)[0] else None

    def kill(self) -> None:
        if self._fd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        if self._fd is not None and not select.select([self._fd], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return 0
