"""Splits, duplicates, cleaning and labels: what makes a held-out set honest."""

from __future__ import annotations

import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from infra.errors import StageError
from tasks.data.cleaning import Clean, clean
from tasks.data.dedup import NearDuplicates, drop_exact, drop_near, shingles
from tasks.data.labels import Label, cap, choose
from tasks.data.reading import Row
from tasks.data.splitting import Split, split_of

WORDS = [f"word{i}" for i in range(20)]


def rows(*texts: str) -> list[Row]:
    return [Row(f"r{i:03}", text, f"g{i}") for i, text in enumerate(texts)]


def test_shares_are_met() -> None:
    split = Split(validation=0.1, test=0.2)
    counts = Counter(split_of(f"file{i}.py", split) for i in range(20_000))
    assert abs(counts["test"] / 20_000 - 0.2) < 0.01
    assert abs(counts["validation"] / 20_000 - 0.1) < 0.01


def test_assignment_is_pinned() -> None:
    """A change of the hash would move examples between splits of every dataset there is."""
    split = Split(validation=0.1, test=0.2)
    groups = ["asyncio/locks.py", "json/decoder.py", "ü", "f"]
    assert [split_of(g, split) for g in groups] == ["test", "train", "train", "validation"]


@given(st.text(), st.integers(0, 5), st.floats(0, 0.4), st.floats(0, 0.1))
def test_growing_the_test_share_never_takes_an_example_out_of_it(g: str, seed: int, share: float, more: float) -> None:
    if split_of(g, Split(seed=seed, test=share)) == "test":
        assert split_of(g, Split(seed=seed, test=share + more)) == "test"


def test_a_split_must_leave_training_data() -> None:
    with pytest.raises(ValidationError, match="must leave something to train on"):
        Split(validation=0.5, test=0.5)
    with pytest.raises(ValidationError):
        Split(by="folder")


@given(st.lists(st.text(max_size=3)))
def test_exact_duplicates(texts: list[str]) -> None:
    kept = [r.text for r in drop_exact(rows(*texts))]
    assert kept == list(dict.fromkeys(texts))


def exact_jaccard(a: str, b: str, size: int) -> float:
    x, y = shingles(a, size), shingles(b, size)
    return len(x & y) / len(x | y)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_near_duplicates_agree_with_comparing_all_pairs(data: st.DataObject) -> None:
    """The reference is the definition: keep a row unless an earlier kept one is similar enough. LSH may miss 1 %."""
    texts = []
    for _ in range(data.draw(st.integers(2, 12))):
        base = data.draw(st.lists(st.sampled_from(WORDS), min_size=30, max_size=40))
        texts.append(" ".join(base))
        edited = list(base)
        for _ in range(data.draw(st.integers(0, 4))):
            edited[data.draw(st.integers(0, len(edited) - 1))] = "changed"
        texts.append(" ".join(edited))
    near = NearDuplicates(threshold=0.6, shingle=3)
    expected: list[str] = []
    for text in texts:
        if not any(exact_jaccard(text, other, 3) >= 0.6 for other in expected):
            expected.append(text)
    kept = [r.text for r in drop_near(rows(*texts), near)]
    # Nothing is dropped without a kept neighbour, and what should go goes, but for what LSH overlooks.
    dropped = Counter(texts) - Counter(kept)
    assert all(any(exact_jaccard(t, k, 3) >= 0.6 for k in kept) for t in dropped)
    assert len(kept) - len(expected) in (0, 1)


def test_near_duplicate_needs_the_threshold() -> None:
    base = " ".join(f"w{i}" for i in range(60))
    edited = base.replace("w30", "other")
    unlike = " ".join(f"v{i}" for i in range(60))
    near = NearDuplicates(threshold=0.8)
    assert [r.text for r in drop_near(rows(base, unlike, edited), near)] == [base, unlike]
    assert len(drop_near(rows(base, unlike, edited), NearDuplicates(threshold=0.95))) == 3


def test_short_texts_are_compared_as_a_whole() -> None:
    assert len(drop_near(rows("a b", "a  b", "a c"), NearDuplicates())) == 2


@given(st.text(max_size=30))
def test_clean_normalises_once(text: str) -> None:
    (kept, dropped) = clean(rows(text), Clean())
    assert len(kept) + sum(dropped.values()) == 1
    for row in kept:
        assert row.text == unicodedata.normalize("NFC", text)
        assert clean([row], Clean())[0] == [row]


def test_clean_says_why() -> None:
    kept, dropped = clean(rows("", "  \n", "abc", "abcdef", "x" * 11), Clean(min_chars=4, max_chars=10))
    assert [r.text for r in kept] == ["abcdef"]
    assert dropped == {"empty": 2, "shorter than 4 characters": 1, "longer than 10 characters": 1}
    assert [r.text for r in clean(rows("e\u0301"), Clean(unicode="none"))[0]] == ["e\u0301"]


def labelled(*labels: str | None) -> list[Row]:
    return [Row(f"r{i}", f"t{i}", f"g{i}", label) for i, label in enumerate(labels)]


def test_unknown_label_names_the_ones_there_are() -> None:
    with pytest.raises(StageError, match="no example has the label 'asincio'") as caught:
        choose(labelled("asyncio", "email"), Label.model_validate({"from": "package", "keep": ["email", "asincio"]}))
    assert "Did you mean asyncio?" in str(caught.value)
    assert "Labels: asyncio, email." in str(caught.value)


def test_one_class_is_refused() -> None:
    with pytest.raises(StageError, match="needs at least two classes, there is only 'a'"):
        choose(labelled("a", "a", None), Label.model_validate({"from": "column:y"}))


def test_rows_without_label_are_counted() -> None:
    label = Label.model_validate({"from": "column:y", "keep": ["a", "b"]})
    kept, dropped = choose(labelled("a", None, "b", "c"), label)
    assert [r.label for r in kept] == ["a", "b"]
    assert dropped == {"no column:y": 1, "label not kept": 1}


def test_cap_keeps_its_choice_when_data_is_added() -> None:
    few, many = labelled(*"ab" * 20), labelled(*"ab" * 25)
    chosen, later = {r.id for r in cap(few, 5)}, {r.id for r in cap(many, 5)}
    assert Counter(r.label for r in cap(few, 5)) == {"a": 5, "b": 5}
    assert later & {r.id for r in few} <= chosen
