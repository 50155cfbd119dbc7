"""A process of its own that does one piece of work each time it is told to; what it loads and lays out beforehand is off
the clock.

Run as a program (`python -m tests.bench.turns FD`) this is the child. The arm is a class `Arm(settings, folder)` in a
file of `tests/bench/data_arms/`: `reset()` before each turn, `work()` on the clock, `outcome()` behind it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil

from tests.bench.arm import ROOT, ArmFailed
from tests.bench.gate import cpu_seconds, machine_seconds
from tests.bench.pairs import of_median
from tests.bench.result import Figure, Measurement, Settings

PATIENCE = 1800.0


class DataArm(Protocol):
    """What a file in `data_arms/` defines as `Arm`."""

    def reset(self) -> None: ...
    def work(self) -> None: ...
    def outcome(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Turn:
    """One turn: seconds on the clock, the share of all cores that others took meanwhile, what came of it."""

    seconds: float
    busy: float
    outcome: dict[str, Any]


@dataclass(frozen=True)
class _Failure:
    text: str


class TurnTaker:
    """The parent's end of such a process."""

    def __init__(self, arm: str, folder: Path, process: subprocess.Popen[bytes], link: Connection) -> None:
        self.arm, self.folder, self.process, self.link = arm, folder, process, link

    def turn(self) -> Turn:
        """Let it do its work once."""
        self.link.send("go")
        try:
            if not self.link.poll(PATIENCE):
                raise ArmFailed(f"{self.arm} said nothing for {PATIENCE:.0f} s{self._tail()}")
            answer = self.link.recv()
        except (EOFError, ConnectionResetError) as error:
            raise ArmFailed(f"{self.arm} died with code {self.process.wait()}{self._tail()}") from error
        if isinstance(answer, _Failure):
            raise ArmFailed(f"{self.arm} failed:\n{answer.text}{self._tail()}")
        turn: Turn = answer
        return turn

    def _tail(self) -> str:
        lines = (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        return "\n".join(["; its log ends:", *lines])


@contextlib.contextmanager
def taking_turns(arm: str, folder: Path, settings: Mapping[str, Any]) -> Iterator[TurnTaker]:
    """A child that works in `folder` as the arm of that name; leaving ends it and what it started."""
    folder.mkdir(parents=True)
    ours, theirs = Pipe()
    environment = {**os.environ, "FORGELINE_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    with (folder / "log.txt").open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.turns", str(theirs.fileno())],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno()],
        )
    theirs.close()
    ours.send((arm, folder, dict(settings)))
    try:
        yield TurnTaker(arm, folder, process, ours)
    finally:
        others = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for one in (process, *others):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
        ours.close()


Given = tuple[str, Mapping[str, Any]]


def interleaved(given: Sequence[Given], settings: Settings) -> list[list[Turn]]:
    """Turns of some arms, each given as (arm, settings): one of each that does not count, then A B, B A, A B ..."""
    with contextlib.ExitStack() as stack:
        arms = [
            stack.enter_context(taking_turns(arm, settings.folder / f"{side}-{arm}", its))
            for side, (arm, its) in enumerate(given)
        ]
        for arm in arms:
            arm.turn()
        turns: list[list[Turn]] = [[] for _ in arms]
        for pair in range(settings.pairs):
            order = range(len(arms))
            for side in order if pair % 2 == 0 else reversed(order):
                turns[side].append(arms[side].turn())
        return turns


def rate_ratio(
    ours: list[Turn], theirs: list[Turn], per_turn: tuple[float, str], names: tuple[str, str], **more: Any
) -> Measurement:
    """How many times as fast: the median over the pairs. per_turn: what a turn gets through, and the unit a second."""
    amount, unit = per_turn
    rates = [
        Figure(name, amount / median_seconds(turns), unit) for name, turns in zip(names, (ours, theirs), strict=True)
    ]
    ratios = [b.seconds / a.seconds for a, b in zip(ours, theirs, strict=True)]
    figures = [*rates, *more.pop("figures", [])]
    return of_median(ratios, figures=figures, busy=mean_busy([*ours, *theirs]), **more)


def cost_ratio(less: list[Turn], full: list[Turn], names: tuple[str, str], **more: Any) -> Measurement:
    """What share of the other's time: the median over the pairs."""
    figures = [Figure(name, median_seconds(turns), "s") for name, turns in zip(names, (less, full), strict=True)]
    ratios = [a.seconds / b.seconds for a, b in zip(less, full, strict=True)]
    return of_median(ratios, figures=figures, busy=mean_busy([*less, *full]), **more)


def median_seconds(turns: list[Turn]) -> float:
    return float(np.median([turn.seconds for turn in turns]))


def mean_busy(turns: list[Turn]) -> float:
    return float(np.mean([turn.busy for turn in turns]))


def main(descriptor: int) -> None:
    """The child: take turns until the parent ends it."""
    link = Connection(descriptor)
    name, folder, settings = link.recv()
    try:
        arm: DataArm = importlib.import_module(f"tests.bench.data_arms.{name}").Arm(settings, folder)
        while link.recv() == "go":
            arm.reset()
            link.send(_measured(arm))
    except EOFError:
        return
    except BaseException:
        link.send(_Failure(traceback.format_exc(limit=-8)))
        raise


def _measured(arm: DataArm) -> Turn:
    used, machine, began = cpu_seconds(), machine_seconds(), time.perf_counter()
    arm.work()
    seconds = time.perf_counter() - began
    others = machine_seconds() - machine - (cpu_seconds() - used)
    return Turn(seconds, max(0.0, others) / seconds / (os.cpu_count() or 1), arm.outcome())


if __name__ == "__main__":
    # The classes that travel over the connection must be those of the module, not of `__main__`.
    importlib.import_module("tests.bench.turns").main(int(sys.argv[1]))
