"""A process of its own that does one piece of work each time it is told to; what it loads and lays out beforehand is off
the clock.

Run as a program (`python -m tests.bench.turns FD`) this is the child. The arm is a class `Arm(settings, folder)` in a
file of `tests/bench/data_arms/`: `reset()` before each turn, `work()` on the clock, `outcome()` behind it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tests.bench.child import Child, Failure
from tests.bench.gate import cpu_seconds, machine_seconds
from tests.bench.pairs import of_median
from tests.bench.result import Figure, Measurement

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


@contextlib.contextmanager
def taking_turns(arm: str, folder: Path, settings: Mapping[str, Any]) -> Iterator[Child]:
    """A child that works in `folder` as the arm of that name; leaving ends it and what it started."""
    child = Child(arm, "tests.bench.turns", folder, {"FORGELINE_CACHE": str(folder / "cache")}, PATIENCE)
    child.link.send((arm, folder, dict(settings)))
    try:
        yield child
    finally:
        child.end()


def turn_of(child: Child) -> Turn:
    """Let it do its work once."""
    child.link.send("go")
    turn: Turn = child.receive()
    return turn


Given = tuple[str, Mapping[str, Any]]


def interleaved(given: Sequence[Given], pairs: int) -> list[list[Turn]]:
    """Turns of some arms, each given as (arm, settings): one of each that does not count, then A B, B A, A B ..."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forgeline-bench-")))
        arms = [
            stack.enter_context(taking_turns(arm, folder / f"{side}-{arm}", its))
            for side, (arm, its) in enumerate(given)
        ]
        for arm in arms:
            turn_of(arm)
        turns: list[list[Turn]] = [[] for _ in arms]
        for pair in range(pairs):
            order = range(len(arms))
            for side in order if pair % 2 == 0 else reversed(order):
                turns[side].append(turn_of(arms[side]))
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
        link.send(Failure(traceback.format_exc(limit=-8)))
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
