"""Ends a process that does not get on: a rank that waits for ever in a collective lives, and beats, but never returns.

    with Watchdog() as watchdog:
        watchdog.expect(120)      # seconds until the next call of expect or rest
        watchdog.rest()           # nothing is expected for now

When time is up, the stacks of all threads go to standard error (the job's log) and the process kills itself with
SIGKILL, which its supervisor takes for what it is: a failure of the surroundings, worth another attempt.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from types import TracebackType

LOOK_SECONDS = 1.0


class Watchdog:
    """A daemon thread with a deadline that the watched code keeps moving."""

    def __init__(self) -> None:
        self._deadline: float | None = None
        self._allowed = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stopped.set()

    def expect(self, seconds: float) -> None:
        """Something has to happen within so many seconds."""
        self._allowed, self._deadline = seconds, time.monotonic() + seconds

    def rest(self) -> None:
        """Wait without limit."""
        self._deadline = None

    def _watch(self) -> None:
        while not self._stopped.wait(min(LOOK_SECONDS, self._allowed / 4 or LOOK_SECONDS)):
            if self._deadline is not None and time.monotonic() > self._deadline:
                sys.stderr.write(
                    f"no progress within {self._allowed:.0f} s; the stacks, and the end of this process:\n"
                )
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                sys.stderr.flush()
                os.kill(os.getpid(), signal.SIGKILL)
