"""Memory that an arm's child processes hold for themselves, sampled from outside while the arm works."""

from __future__ import annotations

import threading

import psutil

INTERVAL = 0.05
MB = 1e6


class ChildMemory:
    """Samples until stopped. What a forked child shares with its parent counts once, with the parent."""

    def __init__(self, pid: int) -> None:
        self.peak_mb = 0.0
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
                    total += child.memory_full_info().uss / MB
            except psutil.NoSuchProcess:  # one ended while it was looked at; the next sample is whole again
                continue
            self.peak_mb = max(self.peak_mb, total)
