"""The child's side of an arm: the same clock for all, and a standstill between the blocks.

The arm calls the gate after every step with that step's loss. At the end of a block the gate stops the clock, tells the
parent, and waits for its word, so that two living arms can take turns. A block ends when the arm has come to rest:
a checkpoint still being written by a thread or child process of the arm is waited for on the clock, because it would
otherwise be paid for by the other arm.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

import psutil

from tests.bench.workload import Workload

WINDOW = 0.05
IDLE_SHARE = 0.1
MATRIX = 1024
MATRIX_SECONDS = 1.0


@dataclass(frozen=True)
class Block:
    """Some steps of one arm on the clock.

    seconds: until the arm was at rest; rest: how much of that was waiting. cpu_seconds: of the process and its children;
    busy: share of all cores that went to others meanwhile, who make any timing worthless if they get much.
    """

    seconds: float
    rest: float
    cpu_seconds: float
    busy: float
    losses: list[float]
    peak_mb: float


class Gate:
    """Called after every step with its loss. Blocks for the parent after the warm-up and after each block."""

    def __init__(self, link: Connection, workload: Workload) -> None:
        self.link, self.workload = link, workload
        self.done = 0
        self._start()

    def __call__(self, loss: float) -> None:
        self.done += 1
        self.losses.append(loss)
        beyond = self.done - self.workload.warmup
        if beyond >= 0 and beyond % self.workload.steps == 0:
            self._pause()

    def _pause(self) -> None:
        from infra.process_memory import peak_mb

        stopped = time.perf_counter()
        ended = at_rest(stopped)
        used, everything = cpu_seconds() - self.used, machine_seconds() - self.machine
        available = (time.perf_counter() - self.began) * (os.cpu_count() or 1)
        busy = max(0.0, everything - used) / available
        self.link.send(Block(ended - self.began, ended - stopped, used, busy, self.losses, peak_mb()))
        while (word := self.link.recv()) == "matrix":
            self.link.send(matrix_rate())
        if word != "go":
            raise ValueError(f"the parent said {word!r}")
        self._start()

    def _start(self) -> None:
        self.losses: list[float] = []
        self.used, self.machine = cpu_seconds(), machine_seconds()
        self.began = time.perf_counter()


def at_rest(stopped: float) -> float:
    """The moment, not before `stopped`, after which this process and its children used no CPU to speak of."""
    used = cpu_seconds()
    while True:
        time.sleep(WINDOW)
        now = cpu_seconds()
        if now - used < IDLE_SHARE * WINDOW:
            return stopped
        used, stopped = now, time.perf_counter()


def cpu_seconds() -> float:
    """CPU seconds of this process and all below it, those that ended included."""
    me, total = psutil.Process(), 0.0
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended since it was listed
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def machine_seconds() -> float:
    """CPU seconds that all processes have used, and those a hypervisor gave to other machines."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def matrix_rate() -> float:
    """fp32 operations a second of a square matrix product on this process's threads: the median over about a second."""
    import torch

    a, b = torch.randn(MATRIX, MATRIX), torch.randn(MATRIX, MATRIX)
    out = torch.empty(MATRIX, MATRIX)
    seconds: list[float] = []
    while sum(seconds) < MATRIX_SECONDS:
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        seconds.append(time.perf_counter() - began)
    return 2.0 * MATRIX**3 / sorted(seconds)[len(seconds) // 2]
