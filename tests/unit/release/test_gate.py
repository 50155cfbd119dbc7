"""Requirements: every rule passes and refuses where arithmetic says so, and certainty is asked of the right side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.numpy import save_file

from infra.errors import StageError
from tasks.release.gate.judging import judge, read_replicates
from tasks.release.gate.requirement import Requirement
from tasks.stages.gate import Params


def scores(**models: dict[str, float]) -> dict[str, Any]:
    return {
        "models": {
            name: {
                "metrics": {m: {"value": v} for m, v in values.items() if m in ("f1", "cross_entropy", "auc")},
                "size_mb": values.get("size_mb"),
                "parameters": 10,
                "peak_memory_mb": 1.5,
                "latency_ms": {"1": {"p50": values.get("latency", 1.0), "p95": 2.0, "n": 30}},
            }
            for name, values in models.items()
        }
    }


def outcome(rule: dict[str, Any], small: dict[str, float], big: dict[str, float], drawn: Any = None) -> Any:
    return judge(Requirement.model_validate(rule), scores(small=small, big=big), drawn or {}, "small", "big")


@pytest.mark.parametrize(
    ("rule", "small", "big", "passed", "bound"),
    [
        ({"metric": "f1", "min": 0.8}, {"f1": 0.8}, {"f1": 1.0}, True, 0.8),
        ({"metric": "f1", "min": 0.8}, {"f1": 0.79}, {"f1": 1.0}, False, 0.79),
        ({"metric": "cross_entropy", "max": 2}, {"cross_entropy": 2.5}, {}, False, 2.5),
        ({"metric": "f1", "max_drop": 0.02}, {"f1": 0.89}, {"f1": 0.90}, True, 0.01),
        ({"metric": "f1", "max_drop": 0.02}, {"f1": 0.85}, {"f1": 0.90}, False, 0.05),
        ({"metric": "f1", "max_drop": 0}, {"f1": 0.95}, {"f1": 0.90}, True, -0.05),
        # For a loss, worse is more.
        ({"metric": "cross_entropy", "max_drop": 0.1}, {"cross_entropy": 2.3}, {"cross_entropy": 2.0}, False, 0.3),
        ({"metric": "cross_entropy", "min_gain": 0.1}, {"cross_entropy": 1.8}, {"cross_entropy": 2.0}, True, 0.2),
        ({"metric": "f1", "min_gain": 0.01}, {"f1": 0.9}, {"f1": 0.9}, False, 0.0),
        ({"metric": "size_mb", "max_ratio": 0.35}, {"size_mb": 3.0}, {"size_mb": 10.0}, True, 0.3),
        ({"metric": "latency_p50_ms@1", "max_ratio": 0.5}, {"latency": 2.0}, {"latency": 3.0}, False, 2 / 3),
        ({"metric": "f1", "min_ratio": 0.98}, {"f1": 0.90}, {"f1": 0.91}, True, 0.90 / 0.91),
        ({"metric": "parameters", "max": 10}, {}, {}, True, 10),
        ({"metric": "peak_memory_mb", "max": 1}, {}, {}, False, 1.5),
    ],
)
def test_rules(
    rule: dict[str, Any], small: dict[str, float], big: dict[str, float], passed: bool, bound: float
) -> None:
    found = outcome(rule, small, big)
    assert found.passed is passed
    assert found.bound == pytest.approx(bound)
    assert found.sentence.endswith("passed." if passed else "refused.")


DRAWN = {"small": {"f1": np.linspace(0.80, 0.90, 1001)}, "big": {"f1": np.full(1001, 0.90)}}


def test_confidence_asks_the_bound_and_not_the_point() -> None:
    point = {"metric": "f1", "max_drop": 0.06}
    assert outcome(point, {"f1": 0.85}, {"f1": 0.90}).passed
    sure = outcome({**point, "confidence": 0.95}, {"f1": 0.85}, {"f1": 0.90}, DRAWN)
    assert not sure.passed
    assert sure.bound == pytest.approx(0.095, abs=1e-3)  # the drop is at most this in 95 % of the resamples


def test_confidence_of_a_gain_and_of_a_minimum_look_down() -> None:
    gain = outcome({"metric": "f1", "min_gain": -0.1, "confidence": 0.95}, {"f1": 0.85}, {"f1": 0.90}, DRAWN)
    assert gain.bound == pytest.approx(-0.095, abs=1e-3)
    least = outcome({"metric": "f1", "min": 0.8, "confidence": 0.9}, {"f1": 0.85}, {"f1": 0.90}, DRAWN)
    assert least.bound == pytest.approx(0.81, abs=1e-3)


def test_resamples_without_a_value_count_against_the_candidate() -> None:
    drawn = {"small": {"f1": np.where(np.arange(100) < 10, np.nan, 0.9)}, "big": {"f1": np.full(100, 0.9)}}
    rule = {"metric": "f1", "max_drop": 0.5, "confidence": 0.95}
    assert not outcome(rule, {"f1": 0.9}, {"f1": 0.9}, drawn).passed
    assert outcome({**rule, "confidence": 0.8}, {"f1": 0.9}, {"f1": 0.9}, drawn).passed


@given(st.floats(0.5, 0.98), st.floats(0, 0.2), st.lists(st.floats(0, 1), min_size=20, max_size=60))
def test_more_confidence_never_turns_a_refusal_into_a_pass(confidence: float, drop: float, values: list[float]) -> None:
    drawn = {"small": {"f1": np.array(values)}, "big": {"f1": np.full(len(values), 0.5)}}

    def passed(c: float) -> bool:
        rule = {"metric": "f1", "max_drop": drop, "confidence": c}
        return bool(outcome(rule, {"f1": 0.5}, {"f1": 0.5}, drawn).passed)

    assert passed(confidence) or not passed(confidence + 0.01)


def test_unknown_metric_names_a_near_one() -> None:
    with pytest.raises(StageError, match="the scores hold no 'f1_macro'") as caught:
        outcome({"metric": "f1_macro", "min": 1}, {"f1": 1.0}, {"f1": 1.0})
    assert "Known: f1, size_mb" in str(caught.value)
    with pytest.raises(StageError, match=r"Did you mean latency_p\d\d_ms@1"):
        outcome({"metric": "latency_ms@1", "max": 1}, {"f1": 1.0}, {"f1": 1.0})


def test_undefined_value_is_an_error_and_not_a_pass() -> None:
    with pytest.raises(StageError, match="auc is not defined"):
        outcome({"metric": "auc", "min": 0.1}, {"auc": None}, {"f1": 1.0})  # type: ignore[dict-item]


def test_costs_have_no_confidence() -> None:
    with pytest.raises(StageError, match="has no sampling error"):
        drawn = {"small": {}, "big": {}}
        outcome({"metric": "size_mb", "max_ratio": 1, "confidence": 0.95}, {"size_mb": 1}, {"size_mb": 2}, drawn)


def test_params_that_make_no_sense() -> None:
    base = {"scores": "s", "candidate": "a", "against": "b"}
    for require in ([], [{"metric": "f1"}], [{"metric": "f1", "min": 1, "max": 2}], [{"metric": "f1", "least": 1}]):
        with pytest.raises(ValidationError):
            Params.model_validate({**base, "require": require})
    with pytest.raises(ValidationError, match="set `against`"):
        Params.model_validate({"scores": "s", "candidate": "a", "require": [{"metric": "f1", "max_drop": 0.1}]})
    with pytest.raises(ValidationError, match="the candidate itself"):
        Params.model_validate({**base, "against": "a", "require": [{"metric": "f1", "min": 0.1}]})


def test_a_label_with_a_slash_is_a_metric_of_its_model(tmp_path: Path) -> None:
    file = tmp_path / "replicates.safetensors"
    save_file({"big/f1@rock/pop": np.arange(3.0), "small/f1_macro": np.ones(3)}, file)
    found = read_replicates(file.parent)
    assert list(found) == ["big", "small"] and found["big"]["f1@rock/pop"].tolist() == [0, 1, 2]
