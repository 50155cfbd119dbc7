"""Memory that an arm's child processes hold for themselves, sampled from outside while the arm works."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import psutil

INTERVAL = 0.05
MB = 1e6


def own_bytes(process: psutil.Process) -> float:
    """What the process alone holds, mapped files included."""
    return float(process.memory_full_info().uss)


def written_bytes(process: psutil.Process) -> float:
    """What the process alone holds and the system cannot take back: pages of mapped files that it only read do not count."""
    rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="utf-8")
    return 1024.0 * next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_Dirty:"))


class ChildMemory:
    """Samples until stopped. What a forked child shares with its parent counts once, with the parent."""

    def __init__(self, pid: int, measure: Callable[[psutil.Process], float] = own_bytes) -> None:
        self.peak_mb = 0.0
        self.largest_mb = 0.0
        """The most that one process held."""
        self._measure = measure
        self._process = psutil.Process(pid)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(INTERVAL):
            total = 0.0
            try:
                for child in self._process.children(recursive=True):
                    held = self._measure(child) / MB
                    total += held
                    self.largest_mb = max(self.largest_mb, held)
            except (
                psutil.NoSuchProcess,
                ProcessLookupError,
                FileNotFoundError,
            ):  # one ended while it was looked at; the next sample is whole again
                continue
            self.peak_mb = max(self.peak_mb, total)
