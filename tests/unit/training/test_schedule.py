"""Learning-rate schedules and the training params they stand beside; nothing here needs torch."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.training.loop.schedule import learning_rate_factor
from tasks.training.settings import ScheduleParams, TrainingParams


def factor(name: str, step: int, total: int, **given: float) -> float:
    params = {"name": name, "warmup_ratio": 0.0, **given}
    return learning_rate_factor(ScheduleParams.model_validate(params), step, total)


def test_warm_up_rises_linearly_and_reaches_the_peak() -> None:
    factors = [factor("cosine", step, 100, warmup_ratio=0.1) for step in range(11)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == 1.0


def test_cosine_and_linear_have_half_the_peak_half_way() -> None:
    assert factor("cosine", 50, 100) == pytest.approx(0.5)
    assert factor("linear", 50, 100, min_ratio=0.2) == pytest.approx(0.6)
    assert factor("cosine", 25, 100) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_no_step_is_spent_at_rate_zero() -> None:
    for name in ("cosine", "linear", "constant", "polynomial", "wsd"):
        for total in (1, 2, 3, 100):
            assert all(factor(name, s, total, warmup_ratio=0.3) > 0 for s in range(total))


def test_wsd_is_constant_until_its_decay() -> None:
    factors = [factor("wsd", step, 100, decay_ratio=0.2, warmup_ratio=0.1) for step in range(100)]
    assert set(factors[10:81]) == {1.0}
    assert factors[85] == pytest.approx(1 - math.sqrt(5 / 20))
    assert factors[99] == pytest.approx(1 - math.sqrt(19 / 20))


def test_polynomial_is_linear_at_one_and_a_parabola_at_two() -> None:
    assert factor("polynomial", 30, 100) == pytest.approx(factor("linear", 30, 100))
    assert factor("polynomial", 30, 100, power=2.0, min_ratio=0.1) == pytest.approx(0.1 + 0.9 * 0.7**2)


def test_a_minimum_ratio_is_where_the_decay_ends() -> None:
    assert factor("cosine", 999, 1000, min_ratio=0.1) == pytest.approx(0.1, abs=1e-4)


@pytest.mark.parametrize("given", [{}, {"epochs": 1, "max_steps": 5}])
def test_length_is_given_exactly_once(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="exactly one of `epochs` and `max_steps`"):
        TrainingParams.model_validate(given)
