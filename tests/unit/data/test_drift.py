"""Drift tests: silent where there is none, loud where there is some, and the p-values are probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tasks.data.drift.columns import measured
from tasks.data.drift.difference import Difference, judged, shares
from tasks.data.drift.differences import differences
from tasks.data.drift.texts import lengths, ngrams, novelty
from tasks.stages.compare import Sizes

COMMON = [f"word{i}" for i in range(300)]


def texts(seed: int, count: int, words: list[str] = COMMON, mean: int = 40) -> list[str]:
    random = np.random.default_rng(seed)
    chances = 1 / np.arange(1, len(words) + 1)
    return [
        " ".join(random.choice(words, max(5, random.poisson(mean)), p=chances / chances.sum())) for _ in range(count)
    ]


def every(old: list[str], new: list[str], seed: int = 0) -> dict[str, Difference]:
    found = [
        lengths([len(t) for t in old], [len(t) for t in new]),
        novelty(old, new, seed, 60),
        ngrams(old, new, seed, 99),
    ]
    return {difference.name: difference for difference in found}


def test_texts_of_one_source_do_not_drift() -> None:
    """Of 20 pairs, at a level of 5 %, about one test of a kind may be wrong; four would be a fault."""
    wrong = {"length": 0, "vocabulary": 0, "words": 0}
    for seed in range(20):
        for name, difference in every(texts(2 * seed, 60), texts(2 * seed + 1, 60), seed).items():
            wrong[name] += difference.p <= 0.05
    assert max(wrong.values()) <= 3, wrong


def test_other_words_and_lengths_are_noticed() -> None:
    old, other = texts(0, 80), texts(1, 80, [*COMMON[:100], *(f"new{i}" for i in range(200))], mean=60)
    found = every(old, other)
    assert all(difference.p <= 0.02 for difference in found.values())
    assert found["vocabulary"].size > 0.2 and found["length"].size > 0.5 and found["words"].size > 0.02


def test_shares_by_hand() -> None:
    found = shares("label", ["a"] * 50 + ["b"] * 50, ["a"] * 90 + ["c"] * 10)
    assert found.size == pytest.approx(0.5)
    assert found.p < 1e-9 and found.told == "b 50.0% -> 0.0%, a 50.0% -> 90.0%, c 0.0% -> 10.0%"
    assert shares("label", ["a"] * 5, ["a"] * 9) == Difference("label", 0.0, 1.0, "a 100.0% -> 100.0%")


def test_a_difference_counts_if_it_is_unlikely_and_large() -> None:
    """Holm: the smallest of three p-values is compared with alpha / 3, the next against alpha / 2; then it ends."""
    found = [Difference("a", 0.5, 0.003, ""), Difference("b", 0.01, 0.0001, ""), Difference("c", 0.5, 0.02, "")]
    verdict = judged(found, alpha=0.01, sizes={"a": 0.1, "b": 0.1, "c": 0.1})
    assert [difference.drifted for difference in verdict] == [True, False, False]


def test_new_characters_are_noticed_where_no_spaces_stand_between_words() -> None:
    random = np.random.default_rng(3)
    known, others = ([chr(first + i) for i in range(200)] for first in (0x4E00, 0x5E00))
    old = ["".join(random.choice(known, 40)) for _ in range(60)]
    new = ["".join(random.choice([*known, *others], 40)) for _ in range(60)]
    found = novelty(old, new, 0, 60)
    assert found.size > 0.3 and found.p < 0.05
    same = novelty(old, ["".join(random.choice(known, 40)) for _ in range(60)], 0, 60)
    assert same.size < 0.05


def rows_of_pictures(seed: int, *, bytes_: int = 400, red: float = 0.3, grade: float = 0.0) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    return [
        {
            "id": str(i),
            "text": "",
            "columns": {
                "photo": measured(b"x" * int(random.normal(bytes_, 40))),
                "colour": measured("red" if random.random() < red else "blue"),
                "grade": measured(float(random.normal(grade))),
                "name": measured(f"number {seed} {i}"),
            },
        }
        for i in range(200)
    ]


@pytest.mark.parametrize("column", ["photo", "colour", "grade"])
def test_columns_drift_where_there_is_no_text(column: str) -> None:
    settings = {"alpha": 0.01, "sizes": Sizes().model_dump(), "seed": 0}
    same = differences(rows_of_pictures(0), rows_of_pictures(1), **settings)
    assert [one.name for one in same] == ["column colour", "column grade", "column photo"], "names are ids: not tested"
    assert not any(one.drifted for one in same)
    moved: dict[str, Any] = {"photo": {"bytes_": 500}, "colour": {"red": 0.9}, "grade": {"grade": 2.0}}[column]
    found = differences(rows_of_pictures(0), rows_of_pictures(1, **moved), **settings)
    assert [one.name for one in found if one.drifted] == [f"column {column}"]
