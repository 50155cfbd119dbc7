"""Slices and changed texts: who is in which slice, metrics of a slice alone, and what a gate makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from infra.errors import StageError
from tasks.evaluation.perturbations import robustness
from tasks.evaluation.slices import Slicing, within
from tasks.metrics.bootstrap import replicates, resample_weights
from tasks.metrics.classification import classification_metrics
from tasks.metrics.direction import greater_is_better
from tasks.release.gate.judging import judge
from tasks.release.gate.requirement import Requirement
from tasks.stage import identity_params


def test_values_parts_of_them_and_ranges_are_slices() -> None:
    def slices(values: list[Any], **how: Any) -> list[str]:
        return [Slicing(by="x", **how).slice_of(value) for value in values]

    assert slices(["a", "b", None, True, 3, float("nan")]) == ["a", "b", "(none)", "true", "3", "(none)"]
    assert slices(["tweets-1", "7"], pattern="[a-z]+") == ["tweets", "(none)"]
    assert slices(["en/a", "de/a"], pattern="^(..)/") == ["en", "de"]
    assert slices([-1, 0, 0.4, 0.5, 9], edges=[0, 0.5]) == ["<0", "0..0.5", "0..0.5", ">=0.5", ">=0.5"]
    assert slices(["abc", "abcd"], edges=[4]) == ["<4", ">=4"], "a text is as long as its characters"


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5, unique=True), st.floats(allow_nan=False))
def test_every_number_is_in_just_the_range_that_holds_it(edges: list[float], value: float) -> None:
    slicing = Slicing(by="x", edges=sorted(edges))
    number = slicing.ranges.index(slicing.slice_of(value))
    assert number == sum(edge <= value for edge in edges)
    assert len(set(slicing.ranges)) == len(edges) + 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"edges": [2, 1]}, "must rise"),
        ({"edges": [1], "pattern": "a"}, "give one"),
        ({"listed": ["a"], "pattern": "a"}, "give one"),
        ({"pattern": "("}, "no regular expression"),
    ],
)
def test_divisions_that_make_no_sense(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Slicing.model_validate({"by": "x", **wrong})


def test_metrics_of_a_slice_are_those_of_its_examples_alone_on_the_same_resamples() -> None:
    random = np.random.default_rng(0)
    labels, logits = random.integers(0, 3, 60), random.normal(size=(60, 3)).astype(np.float32)
    mask = np.arange(60) % 3 == 0
    (weights,) = resample_weights(60, 50, seed=1)
    inside = within(lambda w: classification_metrics(labels, logits, w), mask, weights)
    alone = classification_metrics(labels[mask], logits[mask], weights[:, mask])
    for name, values in alone.items():
        np.testing.assert_allclose(inside[name], values, err_msg=name)


def test_a_resample_without_an_example_of_the_slice_has_no_value() -> None:
    """It would else be 0 / 0, or whatever a metric makes of nothing, and counts against the candidate."""
    hits, mask = np.array([1.0, 0.0, 1.0, 1.0]), np.array([True, False, False, False])
    weights = np.array([[0.0, 2, 1, 1], [1, 1, 1, 1]])
    with np.errstate(all="raise"):
        found = within(lambda w: {"accuracy": (w @ hits) / w.sum(1)}, mask, weights)
    np.testing.assert_array_equal(found["accuracy"], [np.nan, 1.0])


def test_a_drop_is_how_much_worse_whichever_way_a_metric_points() -> None:
    clean = {"f1_macro": np.array([0.9]), "cross_entropy": np.array([0.3]), "recall@spam": np.array([0.8])}
    changed = {"f1_macro": np.array([0.7]), "cross_entropy": np.array([0.5]), "recall@spam": np.array([0.9])}
    found = robustness("typos", clean, changed, greater_is_better)
    assert {name: round(float(value[0]), 9) for name, value in found.items()} == {
        "f1_macro[typos]": 0.7, "cross_entropy[typos]": 0.5, "recall@spam[typos]": 0.9,
        "f1_macro_drop[typos]": 0.2, "cross_entropy_drop[typos]": 0.2, "recall_drop@spam[typos]": -0.1,
    }  # fmt: skip


def test_what_stands_in_brackets_has_no_direction() -> None:
    assert greater_is_better("f1_macro[topic=loss]") and greater_is_better("f1_macro[a/log_error]")
    assert not greater_is_better("cross_entropy[source=tweets]")
    assert not greater_is_better("f1_macro_drop[typos]") and not greater_is_better("recall_drop@spam[typos]")


def test_a_list_that_came_later_changes_no_key_where_it_is_empty() -> None:
    plain = {"by": "id", "pattern": None, "edges": [], "min_examples": 30}
    assert identity_params(Slicing(by="id")) == identity_params(Slicing(by="id", listed=[])) == plain
    assert identity_params(Slicing(by="id", listed=["a"])) == {**plain, "listed": ["a"]}


# --- the gate -----------------------------------------------------------------------------------------------------


RESAMPLES = 1000


def evaluation(**slices: tuple[int, float, float]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """scores.json and replicates of `small` and `big`; slice -> (examples, accuracy of small, of big)."""
    random = np.random.default_rng(3)
    models: dict[str, Any] = {name: {"metrics": {}, "size_mb": 1.0, "artifact": {}} for name in ("small", "big")}
    drawn: dict[str, dict[str, Any]] = {"small": {}, "big": {}}
    for value, (n, *levels) in slices.items():
        for name, level in zip(models, levels, strict=True):
            hits = (random.permutation(n) < round(level * n)).astype(float)
            point, found = replicates(lambda w, hits=hits: {"accuracy": (w @ hits) / w.sum(1)}, n, RESAMPLES, 0)  # type: ignore[misc]
            metric = f"accuracy[source={value}]"
            models[name]["metrics"][metric] = {"value": point["accuracy"], "n": n, "greater_is_better": True}
            drawn[name][metric] = found["accuracy"]
    sizes = {value: n for value, (n, *_) in slices.items()}
    return {"models": models, "slices": {"source": {"by": "id", "min_examples": 30, "n": sizes}}}, drawn


def outcome(rule: dict[str, Any], scores: Any, drawn: Any) -> Any:
    return judge(Requirement.model_validate(rule), scores, drawn, "small", "big")


def test_the_worst_slice_decides_for_all() -> None:
    scores, drawn = evaluation(tweets=(200, 0.9, 0.9), movies=(200, 0.7, 0.9), mails=(200, 0.95, 0.9))
    found = outcome({"metric": "accuracy[source=*]", "max_drop": 0.1}, scores, drawn)
    assert not found.passed and found.candidate == 0.7 and found.against == 0.9
    assert [(one.metric, one.passed) for one in found.slices] == [
        ("accuracy[source=tweets]", True),
        ("accuracy[source=movies]", False),
        ("accuracy[source=mails]", True),
    ]
    assert "accuracy[source=movies]" in found.sentence and found.to_json()["slices"][1]["difference"] < 0
    assert outcome({"metric": "accuracy[source=*]", "max_drop": 0.25}, scores, drawn).passed
    least = outcome({"metric": "accuracy[source=*]", "min": 0.7}, scores, drawn)
    assert least.passed and least.bound == 0.7, "the nearest to the limit is told of those that pass, too"


def test_the_confidence_is_that_of_all_slices_together() -> None:
    scores, drawn = evaluation(tweets=(100, 0.8, 0.8), movies=(100, 0.8, 0.8))
    found = outcome({"metric": "accuracy[source=*]", "min": 0.5, "confidence": 0.9}, scores, drawn)
    assert (found.confidence, {one.confidence for one in found.slices}) == (0.9, {0.95})
    alone = outcome({"metric": "accuracy[source=movies]", "min": 0.5, "confidence": 0.95}, scores, drawn)
    assert alone.to_json() == found.slices[1].to_json()


def test_a_slice_with_too_few_examples_is_never_passed_and_never_hidden() -> None:
    scores, drawn = evaluation(tweets=(100, 0.9, 0.9), movies=(29, 1.0, 0.9))
    alone = outcome({"metric": "accuracy[source=movies]", "min": 0.5}, scores, drawn)
    assert not alone.passed and alone.candidate == 1.0 and "29 examples, and at least 30" in alone.sentence
    among = outcome({"metric": "accuracy[source=*]", "min": 0.5}, scores, drawn)
    assert among.passed and len(among.slices) == 1
    assert among.to_json()["not_judged"] == {"movies": 29} and "not judged: movies (29)" in among.sentence
    scores, drawn = evaluation(tweets=(5, 1.0, 1.0), movies=(29, 1.0, 0.9))
    assert not outcome({"metric": "accuracy[source=*]", "min": 0.5}, scores, drawn).passed, "nothing was judged"


def test_slices_that_do_not_exist_are_errors_that_name_those_that_do() -> None:
    scores, drawn = evaluation(tweets=(100, 0.9, 0.9))
    with pytest.raises(StageError, match="no slices by 'sorce'") as caught:
        outcome({"metric": "accuracy[sorce=*]", "min": 0.5}, scores, drawn)
    assert "Did you mean source" in str(caught.value)
    with pytest.raises(StageError, match="Give their evaluate stage `slices`"):
        outcome({"metric": "accuracy[source=*]", "min": 0.5}, {**scores, "slices": {}}, drawn)
    with pytest.raises(StageError, match=r"Known: accuracy\[source=tweets\]\.$"):
        outcome({"metric": "accuracy[source=twets]", "min": 0.5}, scores, drawn)
