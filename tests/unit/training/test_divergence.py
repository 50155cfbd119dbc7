"""The judge of a step, and the arithmetic of how often to save."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.training.checkpoints.cadence import (
    FIRST_SECONDS,
    LONGEST_SECONDS,
    PRIOR_SECONDS,
    SHORTEST_SECONDS,
    Cadence,
    best_interval,
)
from tasks.training.loop.divergence import SpikeDetector
from tasks.training.settings import DivergenceParams


def detector(losses: list[float], **given: float) -> SpikeDetector:
    made = SpikeDetector(DivergenceParams.model_validate(given))
    for loss in losses:
        assert made.fault(loss, 1.0) is None
        made.accept(loss)
    return made


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_a_fault_from_the_first_step(value: float) -> None:
    assert detector([]).fault(value, None) == f"the loss became {value}"
    assert detector([]).fault(1.0, value) == f"the gradient norm became {value}"


def test_a_spike_is_one_against_the_scale_of_the_losses_before() -> None:
    drawn = random.Random(1)
    usual = [4.0 + drawn.gauss(0, 0.1) for _ in range(64)]
    spikes = detector(usual, zscore=10)
    assert spikes.fault(4.6, 1.0) is None, "6 standard deviations"
    assert "the loss jumped to 5.6" in str(spikes.fault(5.6, 1.0))
    assert detector(usual).fault(50.0, 1.0) is None, "off unless asked for"
    assert detector([4.0] * 10, zscore=10).fault(50.0, 1.0) is None, "too few losses to judge by"


def test_a_spike_that_was_skipped_does_not_widen_the_scale() -> None:
    spikes = detector([4.0 + 0.01 * (i % 7) for i in range(40)], zscore=10)
    for _ in range(30):
        assert spikes.fault(9.0, 1.0) is not None


@given(st.floats(1e-4, 10), st.floats(60, 1e6))
def test_the_best_interval_costs_least(cost: float, between: float) -> None:
    """Young: no other interval loses less to saving and repeating together."""

    def lost(interval: float) -> float:
        return cost / interval + interval / (2 * between)

    best = best_interval(cost, between)
    assert all(lost(best) <= lost(best * factor) * (1 + 1e-9) for factor in (0.5, 0.9, 1.1, 2.0))


def test_the_cost_of_a_checkpoint_is_its_stall_and_what_later_steps_lose_to_it() -> None:
    cadence = Cadence()
    assert cadence.seconds == FIRST_SECONDS
    for _ in range(20):
        cadence.step(1.0, saving=False)
    cadence.stall(0.4)
    for _ in range(3):
        cadence.step(1.2, saving=True)
    cadence.saved()
    assert cadence.seconds == pytest.approx(math.sqrt(2 * (0.4 + 3 * 0.2) * (20 + 3.6 + PRIOR_SECONDS)))


def test_failures_shorten_the_interval_within_bounds() -> None:
    def interval(trained: float, failures: int, cost: float) -> float:
        cadence = Cadence(trained, failures)
        cadence.stall(cost)
        cadence.saved()
        return cadence.seconds

    assert interval(3600, 10, 1.0) < interval(3600, 0, 1.0)
    assert interval(3600, 10**6, 1.0) == SHORTEST_SECONDS and interval(1e9, 0, 100.0) == LONGEST_SECONDS
