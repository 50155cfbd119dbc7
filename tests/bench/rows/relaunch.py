"""Relaunch of a gang with a killed rank to its first step, beside torchrun."""

from __future__ import annotations

import statistics

from tests.bench import relaunch
from tests.bench.child import ArmFailed
from tests.bench.pairs import median_interval
from tests.bench.result import Figure, Measurement, Row, Settings


def measure(settings: Settings) -> Measurement:
    try:
        found = relaunch.measure(settings.pairs)
    except relaunch.RoundFailed as error:
        raise ArmFailed(str(error)) from error
    low, high = median_interval(found["ratios"])
    return Measurement(
        value=found["ratio"],
        low=low,
        high=high,
        interval="95% bootstrap",
        figures=[Figure(arm, statistics.median(found[f"{arm}_seconds"]), "s") for arm in ("forgeline", "torchrun")],
        incomparable=found["incomparable"],
        details={
            name: found[name]
            for name in (
                "ratios",
                "forgeline_seconds",
                "forgeline_gone_seconds",
                "torchrun_seconds",
                "largest_loss_difference",
            )
        },
    )


ROWS = [
    Row(
        "relaunch",
        "seconds from SIGKILL of one of two ranks to the end of the first step after the gang was started again from a "
        "checkpoint, Forgeline's launcher over torchrun with --max-restarts 1, the same script under both",
        relaunch.BAR,
        "",
        measure,
        at_least=False,
    )
]
