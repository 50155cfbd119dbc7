"""Runs a command and ends only when everything it started has ended: the first process of a container.

    python -m infra.platform.outlive prefect worker start --pool forgeline

A worker that is asked to stop is gone in a second, and a container ends with its first process. The training runs it
leaves behind have been asked as well, but need their time to save a checkpoint: this waits for them, up to the grace
period after which whoever stops the container kills it (compose: `stop_grace_period`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import FrameType

from infra.launch.process import adopt_orphans


def outlive(command: list[str]) -> int:
    """Exit code of the command, once neither it nor any process it left behind is there."""
    adopt_orphans()
    child = subprocess.Popen(command)

    def pass_on(number: int, frame: FrameType | None) -> None:
        if child.returncode is None:
            os.kill(child.pid, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    code = 0
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            return code
        if pid == child.pid:
            code = child.returncode = os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    ended = outlive(sys.argv[1:])
    sys.exit(ended if ended >= 0 else 128 - ended)
