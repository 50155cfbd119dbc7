"""Share of the time that went into steps that count while the training is killed again and again."""

from __future__ import annotations

import functools
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.bench import goodput
from tests.bench.child import ArmFailed
from tests.bench.goodput import Life
from tests.bench.pairs import LOSS_TOLERANCE
from tests.bench.result import PAIRS, Figure, Measurement, Row, Settings

SEED = 1
"""Its first gaps average about the mean that is asked for; seed 20, for one, spares the first half of the training."""
DRAWS = 2000
BUCKETS = ("first_start", "useful", "saving", "redone", "detect", "restart", "other")
WORK_SECONDS = 160.0
INTERVAL_SECONDS = 1.0
COMPARED_STEPS = 300
"""Of both arms; each is compared with itself throughout. Rounding alone takes the two 4e-3 apart within 2,000 steps."""


@functools.cache
def play(pairs: int) -> dict[str, Any]:
    """One run serves both rows; with fewer pairs it is shorter."""
    sys.stdout.write(f"goodput: kills drawn with seed {SEED}\n")
    with tempfile.TemporaryDirectory(prefix="forgeline-bench-") as folder:
        try:
            played = goodput.play(SEED, WORK_SECONDS * min(1.0, pairs / PAIRS), INTERVAL_SECONDS, Path(folder))
        except goodput.TrainingFailed as error:
            raise ArmFailed(str(error)) from error
    if min(len(played["forgeline"]), len(played["plain"])) < 2:
        raise ArmFailed("no kill fell into a training run; it has to be longer")
    return played


Spent = dict[str, float]


def spent(lives: list[Life]) -> list[Spent]:
    """Where the wall time of each life went, in seconds; see `tests/bench/goodput.py`. And `steps` gained, `snapshots`."""
    pace, done, found = goodput.quiet_seconds(lives), 0, []
    for number, life in enumerate(lives):
        of = dict.fromkeys((*BUCKETS, "steps", "snapshots", "killed"), 0.0)
        before = life.marks[0].at - pace
        begin = lives[number - 1].noticed if number else life.submitted
        of["restart" if number else "first_start"] = before - begin
        for mark in life.marks:
            seconds, before = mark.at - before, mark.at
            if mark.step <= done:
                of["redone"] += seconds
            else:
                of["steps"] += 1
                of["useful"] += pace
                of["other" if mark.when == "quiet" else "saving"] += seconds - pace
        done = max(done, life.marks[-1].step)
        of["snapshots"] = float(life.marks[-1].snapshots)
        if life.killed is not None:
            of["killed"] = 1.0
            of["redone"] += life.killed - before
            of["detect"] = life.noticed - life.killed
        found.append(of)
    return found


def total(parts: Sequence[Spent]) -> Spent:
    return {name: sum(part[name] for part in parts) for name in parts[0]}


def wall(of: Spent) -> float:
    """Seconds from the begin of the first step to the end of the last."""
    return sum(of[name] for name in BUCKETS if name != "first_start")


def optimum(of: Spent) -> tuple[float, float]:
    """(G*, its interval): 1 - d/t - (t/2 + D + R)/M at the best t, with the d, D, R and M of this very training."""
    cost = max(of["saving"], 0.0) / max(of["snapshots"], 1.0)
    failures = max(of["killed"], 1.0)
    between = wall(of) / failures
    interval = math.sqrt(2.0 * cost * between)
    lost = interval / 2 + (of["detect"] + of["restart"]) / failures
    return 1.0 - (cost / interval if interval else 0.0) - lost / between, interval


def of_best(of: Spent) -> float:
    return of["useful"] / wall(of) / optimum(of)[0]


def steps_a_second(of: Spent) -> float:
    return of["steps"] / (wall(of) + of["first_start"])


def resampled(figure: Callable[[Spent], float], parts: list[Spent], seed: int) -> npt.NDArray[np.float64]:
    """`figure` over killed lives drawn again with replacement; the last one, which nobody killed, stays."""
    killed = len(parts) - 1
    picks = np.random.default_rng(seed).integers(0, killed, (DRAWS, killed))
    return np.array([figure(total([*(parts[i] for i in pick), parts[-1]])) for pick in picks])


def difference(*lives: Life, steps: int | None = None) -> str:
    """Empty if each of the first `steps` steps, or of all, had the same loss in every life and none is missing."""
    losses: dict[int, list[float]] = {}
    for life in lives:
        for mark in life.marks:
            losses.setdefault(mark.step, []).append(mark.loss)
    for step in range(1, min(steps or max(losses), max(losses)) + 1):
        found = losses.get(step, [])
        if not found or not max(found) - min(found) <= LOSS_TOLERANCE:
            return f"losses of step {step}: {found}"
    return ""


def of_the_optimum(settings: Settings) -> Measurement:
    played = play(settings.pairs)
    lives, parts = played["forgeline"], spent(played["forgeline"])
    of = total(parts)
    best, interval = optimum(of)
    low, high = np.quantile(resampled(of_best, parts, SEED), [0.025, 0.975])
    return Measurement(
        value=of_best(of),
        low=float(low),
        high=float(high),
        interval="95% bootstrap over lives",
        figures=[
            Figure("goodput", of["useful"] / wall(of), ""),
            Figure("optimum", best, ""),
            Figure("kills", of["killed"], ""),
            Figure("wall time", wall(of), "s"),
        ],
        incomparable=difference(*lives),
        details={
            **{f"{name}_seconds": of[name] for name in BUCKETS},
            "seed": float(SEED),
            "step_seconds": goodput.quiet_seconds(lives),
            "interval_steps": float(played["every"]),
            "mean_gap_drawn_seconds": played["between"],
            "best_interval_seconds": interval,
            "snapshots": of["snapshots"],
            "lives_seconds": [life.noticed - life.submitted for life in lives],
        },
    )


def of_plain_restart(settings: Settings) -> Measurement:
    played = play(settings.pairs)
    parts = {name: spent(played[name]) for name in ("forgeline", "plain")}
    of = {name: total(found) for name, found in parts.items()}
    drawn = [resampled(steps_a_second, found, SEED + n) for n, found in enumerate(parts.values())]
    low, high = np.quantile(drawn[0] / drawn[1], [0.025, 0.975])
    return Measurement(
        value=steps_a_second(of["forgeline"]) / steps_a_second(of["plain"]),
        low=float(low),
        high=float(high),
        interval="95% bootstrap over lives",
        figures=[
            *(Figure(name, wall(found) + found["first_start"], "s") for name, found in of.items()),
            *(Figure(f"kills of {name}", found["killed"], "") for name, found in of.items()),
        ],
        incomparable=difference(*played["forgeline"])
        or difference(*played["plain"])
        or difference(*played["forgeline"], *played["plain"], steps=COMPARED_STEPS),
        details={
            "seed": float(SEED),
            **{f"plain_{name}_seconds": of["plain"][name] for name in BUCKETS},
            **{f"{name}_step_seconds": goodput.quiet_seconds(played[name]) for name in parts},
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
        "goodput over that of a bare torch loop that saves with torch.save at the same steps and is started again as a "
        "Python process: same steps, same drawn kills; wall time from the first submit, imports included in both",
        1.3,
        "",
        of_plain_restart,
    ),
]
