"""Splits, duplicates and labels: what makes a held-out set honest."""

from __future__ import annotations

from collections import Counter
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from infra.errors import StageError
from tasks.data.hashing import long_hash, short_hash
from tasks.data.selection import dedup
from tasks.data.selection.dedup import (
    NearDuplicates,
    bands,
    first_of_equal,
    first_of_near,
    repeated,
    signatures,
)
from tasks.data.selection.splitting import TEST, VALIDATION, Split, assign_stratified, point_of, split_of
from tasks.data.steps.labels import Label, capped, check_classes, check_known
from tasks.data.words import runs_of_words

WORDS = [f"word{i}" for i in range(20)]
PINNED = [1669565859, 1916232722, 1127628098, 957541815]


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


def survivors(texts: list[str], near: NearDuplicates, exempt: list[bool] | None = None) -> list[str]:
    """The texts that near-deduplication leaves, in order."""
    found = signatures(texts, near)
    proposals = bands(found, near)
    met = np.flatnonzero(np.any([repeated(band) for band in proposals.T], axis=0))
    spared = np.array(exempt or [False] * len(texts), np.bool_)[met]
    keep = np.ones(len(texts), np.bool_)
    keep[met] = first_of_near(found[met], proposals[met], near.threshold, spared)
    return [text for text, stays in zip(texts, keep, strict=True) if stays]


@given(st.lists(st.text(max_size=3)))
def test_exact_duplicates(texts: list[str]) -> None:
    keep = first_of_equal(np.array([long_hash(text) for text in texts], np.uint64).reshape(-1, 2))
    assert [text for text, stays in zip(texts, keep, strict=True) if stays] == list(dict.fromkeys(texts))


values = st.builds(lambda high, low: (high << 58) + low, st.integers(0, 3), st.integers(0, 6))
"""64 bits of which few are used, so that equal values are many, and so are unequal ones with the same low bits."""


@given(st.lists(values), st.sampled_from([1, 3, dedup.BLOCK]))
def test_values_that_are_there_more_than_once(found: list[int], block: int) -> None:
    counts = Counter(found)
    with mock.patch.object(dedup, "BLOCK", block):
        assert repeated(np.array(found, np.uint64)).tolist() == [counts[value] > 1 for value in found]


def exact_jaccard(a: str, b: str, size: int) -> float:
    x, y = (set(runs_of_words([text], size, symbols=True)[0].tolist()) for text in (a, b))
    return len(x & y) / len(x | y)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_near_duplicates_agree_with_comparing_all_pairs(data: st.DataObject) -> None:
    """The reference is the definition, with the exact similarity; the estimate of 256 permutations may be 0.12 off."""
    texts = []
    for _ in range(data.draw(st.integers(2, 12))):
        base = data.draw(st.lists(st.sampled_from(WORDS), min_size=30, max_size=40))
        texts.append(" ".join(base))
        edited = list(base)
        for _ in range(data.draw(st.integers(0, 4))):
            edited[data.draw(st.integers(0, len(edited) - 1))] = "changed"
        texts.append(" ".join(edited))
    near = NearDuplicates(threshold=0.6, shingle=3, num_perm=256)
    kept = survivors(texts, near)
    gone = Counter(texts) - Counter(kept)
    assert all(any(exact_jaccard(text, other, 3) >= 0.48 for other in kept) for text in gone)
    for i, text in enumerate(kept):
        assert all(exact_jaccard(text, other, 3) < 0.75 for other in kept[:i])


def test_near_duplicate_needs_the_threshold() -> None:
    base = " ".join(f"w{i}" for i in range(200))
    edited = base.replace("w30", "other")
    unlike = " ".join(f"v{i}" for i in range(200))
    assert survivors([base, unlike, edited], NearDuplicates(threshold=0.8)) == [base, unlike]
    assert len(survivors([base, unlike, edited], NearDuplicates(threshold=1.0))) == 3


def test_an_exempt_row_stays_and_still_makes_others_go() -> None:
    text = " ".join(f"w{i}" for i in range(60))
    assert len(survivors([text, text, text], NearDuplicates(), [True, True, False])) == 2


def test_short_texts_are_compared_as_a_whole() -> None:
    assert len(survivors(["a b", "a  b", "a c"], NearDuplicates())) == 2


def test_signatures_are_pinned() -> None:
    """They are kept in stores: another value for the same text would find no duplicate of what was prepared before."""
    found = signatures(["the quick brown fox jumps over the lazy dog"], NearDuplicates(num_perm=16))
    assert found[0, :4].tolist() == PINNED


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2)), min_size=1), st.floats(0, 0.4), st.floats(0, 0.4))
def test_stratified_shares_are_met_for_each_label(
    groups: list[tuple[int, int]], validation: float, test: float
) -> None:
    """Groups are never torn; of each label's groups as many are held out as the share says, to the nearest."""
    points = np.array([point_of(str(group), 0) for group, _ in groups], np.uint64)
    labels = np.array([group % 3 for group, _ in groups], np.int32)
    split = Split(validation=validation, test=test, stratify=True)
    codes = assign_stratified(points, labels, split)
    of_group: dict[int, set[int]] = {}
    for (group, _), code in zip(groups, codes.tolist(), strict=True):
        of_group.setdefault(group, set()).add(code)
    assert all(len(found) == 1 for found in of_group.values())
    for label in range(3):
        members = [found.copy().pop() for group, found in of_group.items() if group % 3 == label]
        assert members.count(TEST) == round(test * len(members))
        assert members.count(TEST) + members.count(VALIDATION) == round((test + validation) * len(members))


def test_cap_keeps_its_choice_when_data_is_added() -> None:
    label = Label.model_validate({"from": "column:y", "max_per_class": 5})

    def chosen(count: int) -> dict[str, int]:
        ids = [f"r{i}" for i in range(count)]
        codes = np.arange(count, dtype=np.int32) % 2
        keep = capped(codes, np.array([short_hash(i) for i in ids], np.uint64), label)
        return {ids[i]: int(codes[i]) for i in np.flatnonzero(keep)}

    few, many = chosen(40), chosen(50)
    assert Counter(few.values()) == {0: 5, 1: 5}
    assert many.keys() & {f"r{i}" for i in range(40)} <= few.keys()


def test_balance_gives_each_class_as_many_as_the_rarest() -> None:
    codes = np.array([0] * 9 + [1] * 4 + [2] * 6, np.int32)
    keep = capped(codes, np.arange(19, dtype=np.uint64), Label.model_validate({"from": "column:y", "balance": True}))
    assert np.bincount(codes[keep]).tolist() == [4, 4, 4]


def test_unknown_label_names_the_ones_there_are() -> None:
    with pytest.raises(StageError, match="no example has the label 'asincio'") as caught:
        check_known(["email", "asincio"], ["asyncio", "email", "email"])
    assert "Did you mean asyncio?" in str(caught.value)
    assert "Labels: asyncio, email." in str(caught.value)


def test_one_class_is_refused() -> None:
    with pytest.raises(StageError, match="needs at least two classes, there is only 'a'"):
        check_classes(["a", "a"])
