"""What a row of the benchmark says: a measured value with its spread, against a bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

PAIRS = 7
BUSY = 0.15


@dataclass(frozen=True)
class Settings:
    """How thorough a run is, and where arms may write. Under 7 pairs nothing is written to docs/."""

    folder: Path
    pairs: int = PAIRS
    steps: int = 16


@dataclass(frozen=True)
class Figure:
    """One absolute figure of one arm."""

    arm: str
    value: float
    unit: str


@dataclass(frozen=True)
class Measurement:
    """value: what is compared with the bar. interval: (low, high) and how it was made.

    incomparable: why the arms must not be compared; the bar then counts as missed. busy: share of all cores that other
    work took while the arms were on the clock.
    """

    value: float
    low: float
    high: float
    interval: str
    figures: list[Figure]
    incomparable: str = ""
    busy: float = 0.0
    details: dict[str, float | list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A row of the table. `bar` is reached by `value >= bar`, or `<=` where less is better."""

    name: str
    what: str
    bar: float
    unit: str
    measure: Callable[[Settings], Measurement]
    at_least: bool = True

    def verdict(self, found: Measurement) -> str:
        """`yes` or `no` by the value; "within noise" is added where the interval holds the bar.

        No verdict where other work took more than `BUSY` of the cores.
        """
        if found.incomparable:
            return "not comparable"
        if found.busy > BUSY:
            return "machine busy"
        met = found.value >= self.bar if self.at_least else found.value <= self.bar
        noise = found.low < self.bar < found.high
        return ("yes" if met else "no") + (", within noise" if noise else "")
