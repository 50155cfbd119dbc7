"""The pruning schedule against the published formula, and what holds for every schedule."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tasks.compression.pruning.schedule import PruningSchedule


def test_sparsity_is_that_of_the_formula() -> None:
    """s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3 at t = t_0 + dt, ..., t_0 + n dt, and nothing between."""
    schedule, final, begin, every, removals = PruningSchedule(every=10, begin=0.2, until=0.8), 0.9, 20, 10, 6
    found = {step: schedule.kept(step, 100, 1 - final) for step in range(1, 101)}
    expected = {
        begin + i * every: final + (0 - final) * (1 - i * every / (removals * every)) ** 3
        for i in range(1, removals + 1)
    }
    assert {step: 1 - kept for step, kept in found.items() if kept is not None} == pytest.approx(expected)


def test_a_linear_one_rises_evenly() -> None:
    schedule = PruningSchedule(shape="linear", every=25, until=1.0)
    assert [schedule.kept(step, 100, 0.2) for step in (25, 50, 75, 100)] == pytest.approx([0.8, 0.6, 0.4, 0.2])


@given(
    st.sampled_from(["cubic", "linear"]),
    st.integers(1, 40),
    st.floats(0, 0.99),
    st.floats(0.01, 1),
    st.integers(1, 200),
    st.floats(0.01, 0.99),
)
def test_every_schedule_falls_to_exactly_what_was_asked_for(
    shape: Any, every: int, begin: float, until: float, total: int, keep: float
) -> None:
    assume(begin < until)
    schedule = PruningSchedule(shape=shape, every=every, begin=begin, until=until)
    removals = [(step, kept) for step in range(1, total + 1) if (kept := schedule.kept(step, total, keep)) is not None]
    shares = [kept for _, kept in removals]
    assert shares[-1] == keep and shares == sorted(shares, reverse=True) and shares[0] <= 1
    steps = [step for step, _ in removals]
    assert steps[-1] == max(1, round(until * total))
    assert all(later - earlier == every for earlier, later in zip(steps[:-2], steps[1:-1], strict=True))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"until": 1.2}, "less than or equal to 1"),
        ({"begin": 0.5, "until": 0.5}, "`begin: 0.5` is not before `until: 0.5`"),
        ({"every": 0}, "greater than or equal to 1"),
    ],
)
def test_a_schedule_that_does_not_fit_into_the_training_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PruningSchedule.model_validate(wrong)
