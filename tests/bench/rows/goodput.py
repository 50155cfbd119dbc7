"""Share of the time that went into steps that count while the training is killed again and again."""

from __future__ import annotations

import functools
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench import goodput
from tests.bench.arm import ArmFailed
from tests.bench.goodput import Life
from tests.bench.pairs import LOSS_TOLERANCE, RESAMPLES
from tests.bench.result import PAIRS, Figure, Measurement, Row, Settings

SEED = 20
WORK_SECONDS = 40.0
INTERVAL_SECONDS = 1.0


@functools.cache
def play(pairs: int) -> dict[str, Any]:
    """One run serves both rows; with fewer pairs it is shorter."""
    sys.stdout.write(f"goodput: kills drawn with seed {SEED}\n")
    with tempfile.TemporaryDirectory(prefix="forgeline-bench-") as folder:
        try:
            return goodput.play(SEED, WORK_SECONDS * min(1.0, pairs / PAIRS), INTERVAL_SECONDS, Path(folder))
        except goodput.TrainingFailed as error:
            raise ArmFailed(str(error)) from error


def buckets(lives: list[Life]) -> dict[str, float]:
    """Where the wall time of a training went, in seconds; see `tests/bench/goodput.py`."""
    pace = goodput.quiet_seconds(lives)
    found = dict.fromkeys(("first_start", "useful", "saving", "redone", "detect", "restart", "other"), 0.0)
    done = 0
    for number, life in enumerate(lives):
        before = life.marks[0].at - pace
        found["restart" if number else "first_start"] += before - life.submitted
        if number:
            found["restart"] += life.submitted - lives[number - 1].noticed
        for mark in life.marks:
            seconds, before = mark.at - before, mark.at
            if mark.step <= done:
                found["redone"] += seconds
            else:
                found["useful"] += pace
                found["other" if mark.when == "quiet" else "saving"] += seconds - pace
        done = max(done, life.marks[-1].step)
        if life.killed is not None:
            found["redone"] += life.killed - before
            found["detect"] += life.noticed - life.killed
    return found


def wall(lives: list[Life], *, first_start: bool) -> float:
    """Seconds from the first submit, or from the begin of the first step, to the end of the last step."""
    begin = lives[0].submitted if first_start else lives[0].marks[0].at - goodput.quiet_seconds(lives)
    return lives[-1].marks[-1].at - begin


def optimum(found: dict[str, float], lives: list[Life], seconds: float) -> tuple[float, float]:
    """(G*, its interval): 1 - d/t - (t/2 + D + R)/M at the best t, with the d, D, R and M of this very training."""
    failures = len(lives) - 1
    if not failures:
        raise ArmFailed("no kill fell into the training; it has to be longer")
    snapshots = sum(life.marks[-1].snapshots for life in lives)
    cost, between = max(found["saving"], 0.0) / snapshots, seconds / failures
    interval = math.sqrt(2.0 * cost * between)
    lost = interval / 2 + (found["detect"] + found["restart"]) / failures
    return 1.0 - (cost / interval if interval else 0.0) - lost / between, interval


def difference(*arms: list[Life]) -> str:
    """Empty if a step had the same loss in every life of every arm and no step is missing."""
    losses: dict[int, list[float]] = {}
    for lives in arms:
        for life in lives:
            for mark in life.marks:
                losses.setdefault(mark.step, []).append(mark.loss)
    for step in range(1, max(losses) + 1):
        found = losses.get(step, [])
        if not found or not max(found) - min(found) <= LOSS_TOLERANCE:
            return f"losses of step {step}: {found}"
    return ""


def resampled(*arms: list[Life]) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    """Of each arm: useful steps a second after the first start, over lives drawn again with replacement."""
    drawn = np.random.default_rng(SEED)
    found = []
    for lives in arms:
        reached = [0, *(max(mark.step for life in lives[: n + 1] for mark in life.marks) for n in range(len(lives)))]
        gained = np.diff(reached).astype(np.float64)
        begins = [lives[0].marks[0].at, *(life.submitted for life in lives[1:])]
        took = np.diff([*begins, lives[-1].marks[-1].at])
        at = drawn.integers(0, len(lives), (RESAMPLES, len(lives)))
        found.append(gained[at].sum(axis=1) / took[at].sum(axis=1))
    return found


def of_the_optimum(settings: Settings) -> Measurement:
    played = play(settings.pairs)
    lives, steps = played["forgeline"], played["steps"]
    pace, found, seconds = goodput.quiet_seconds(lives), buckets(lives), wall(lives, first_start=False)
    best, interval = optimum(found, lives, seconds)
    reached = steps * pace / seconds
    low, high = np.quantile(resampled(lives)[0] * pace / best, [0.025, 0.975])
    snapshots = sum(life.marks[-1].snapshots for life in lives)
    return Measurement(
        value=reached / best,
        low=float(low),
        high=float(high),
        interval="95% bootstrap over lives",
        figures=[
            Figure("goodput", reached, ""),
            Figure("optimum", best, ""),
            Figure("kills", float(len(lives) - 1), ""),
            Figure("wall time", seconds, "s"),
        ],
        incomparable=difference(lives),
        details={
            **{f"{name}_seconds": value for name, value in found.items()},
            "seed": float(SEED),
            "step_seconds": pace,
            "interval_steps": float(played["every"]),
            "mean_gap_drawn_seconds": played["between"],
            "best_interval_seconds": interval,
            "snapshots": float(snapshots),
            "lives_seconds": [life.noticed - life.submitted for life in lives],
        },
    )


def of_plain_restart(settings: Settings) -> Measurement:
    played = play(settings.pairs)
    ours, plain = played["forgeline"], played["plain"]
    seconds = {name: wall(played[name], first_start=True) for name in ("forgeline", "plain")}
    first, second = resampled(ours, plain)
    low, high = np.quantile(first / second, [0.025, 0.975])
    return Measurement(
        value=seconds["plain"] / seconds["forgeline"],
        low=float(low),
        high=float(high),
        interval="95% bootstrap over lives",
        figures=[
            *(Figure(name, value, "s") for name, value in seconds.items()),
            *(Figure(f"kills of {name}", float(len(played[name]) - 1), "") for name in seconds),
        ],
        incomparable=difference(ours, plain),
        details={
            "seed": float(SEED),
            **{f"plain_{name}_seconds": value for name, value in buckets(plain).items()},
            "forgeline_step_seconds": goodput.quiet_seconds(ours),
            "plain_step_seconds": goodput.quiet_seconds(plain),
        },
    )


ROWS = [
    Row(
        "goodput",
        "unique steps x median undisturbed step over wall time from the begin of the first step to the end of the last, "
        "killed by SIGKILL on average every 10 checkpoint intervals, over Young and Daly's optimum "
        "1 - d/t - (t/2 + D + R)/M with d, D, R, M of the same training and t = sqrt(2 d M)",
        0.95,
        "",
        of_the_optimum,
    ),
    Row(
        "goodput-plain-restart",
        "goodput over that of a bare torch loop that saves with torch.save at the same steps and is started anew as a "
        "Python process: same steps, same drawn kills; wall time from the first submit, imports included in both",
        1.3,
        "",
        of_plain_restart,
    ),
]
