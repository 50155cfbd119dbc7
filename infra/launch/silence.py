"""Whether a process that others wait for still lives: one that was stopped (SIGSTOP), or waits for a disk that is gone,
neither ends nor answers, and whoever waits for it would wait for ever.

A living process that wakes every second or so (a supervisor) or works (imports) changes its processor time or its count
of context switches. Only time in which the observer itself was awake counts, so a machine that slept blames nobody.
"""

from __future__ import annotations

import time

import psutil

SILENCE_SECONDS = 30.0
LONGEST_STEP = 1.0
"""Seconds between two looks that count at most."""


class Silence:
    """How long a process has given no sign of life, as seen by whoever asks again and again."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.seconds = 0.0
        self._sign: object = None
        self._looked = time.monotonic()

    def too_long(self) -> bool:
        """Look once more; whether `SILENCE_SECONDS` passed without a sign. A process that is gone is not silent."""
        now, sign = time.monotonic(), _sign_of_life(self.pid)
        passed, self._looked = min(now - self._looked, LONGEST_STEP), now
        self.seconds = self.seconds + passed if sign is not None and sign == self._sign else 0.0
        self._sign = sign
        return self.seconds >= SILENCE_SECONDS


def _sign_of_life(pid: int) -> object:
    try:
        process = psutil.Process(pid)
        switches = process.num_ctx_switches()
        return process.cpu_times()[:2], switches.voluntary, switches.involuntary
    except psutil.Error:
        return None
