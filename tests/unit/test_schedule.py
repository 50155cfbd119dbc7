"""Learning-rate schedules and the training params they stand beside; nothing here needs torch."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.training.schedule import learning_rate_factor
from tasks.training.settings import TrainingParams


def test_warm_up_rises_linearly_and_reaches_the_peak() -> None:
    factors = [learning_rate_factor("cosine", step, 100, warmup_ratio=0.1) for step in range(11)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == 1.0


def test_cosine_and_linear_have_half_the_peak_half_way() -> None:
    assert learning_rate_factor("cosine", 50, 100) == pytest.approx(0.5)
    assert learning_rate_factor("linear", 50, 100, min_ratio=0.2) == pytest.approx(0.6)
    assert learning_rate_factor("cosine", 25, 100) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_no_step_is_spent_at_rate_zero() -> None:
    for name in ("cosine", "linear", "constant"):
        for total in (1, 2, 3, 100):
            assert all(learning_rate_factor(name, s, total, warmup_ratio=0.3) > 0 for s in range(total))


def test_a_minimum_ratio_is_where_the_decay_ends() -> None:
    assert learning_rate_factor("cosine", 999, 1000, min_ratio=0.1) == pytest.approx(0.1, abs=1e-4)


@pytest.mark.parametrize("given", [{}, {"epochs": 1, "max_steps": 5}])
def test_length_is_given_exactly_once(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="exactly one of `epochs` and `max_steps`"):
        TrainingParams.model_validate(given)
