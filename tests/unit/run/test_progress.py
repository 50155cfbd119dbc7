"""What the UI is told of a stage that goes on."""

from __future__ import annotations

import pytest

from tasks.run.prefect_task import time_left


@pytest.mark.parametrize(
    ("first", "now", "left"),
    [
        ((0.0, 0.0), (30.0, 25.0), 90.0),
        ((10.0, 50.0), (20.0, 60.0), 40.0),  # resumed half-way: the pace is that of this attempt
        ((0.0, 10.0), (60.0, 10.0), None),
        ((0.0, 90.0), (5.0, 100.0), 0.0),
    ],
)
def test_the_time_left_is_told_at_the_pace_so_far(
    first: tuple[float, float], now: tuple[float, float], left: float | None
) -> None:
    assert time_left(first, now) == left
