"""Words and their hashes, against `re`: the same words, equal hashes for equal words only, whatever stands around them."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data import words
from tasks.data.hashing import FACTOR, mixed, windows
from tasks.data.words import runs_of_words, word_hashes

PATTERNS = {True: re.compile(r"\w+|[^\w\s]"), False: re.compile(r"\w+")}
texts = st.lists(
    st.text(st.sampled_from("ab_9 \n\t.,-\u00e9\u0301\u4e2d\u2003\x1c\U0001f600") | st.characters(), max_size=30),
    max_size=6,
)


@given(texts, st.booleans(), st.sampled_from([1, 7, words.PIECE]))
def test_they_are_the_words_that_re_finds(texts: list[str], symbols: bool, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "PIECE", piece)
        hashes, offsets = word_hashes(texts, symbols=symbols)
    expected = [PATTERNS[symbols].findall(text) for text in texts]
    assert np.diff(offsets).tolist() == [len(found) for found in expected]
    flat = [word for found in expected for word in found]
    assert len({*zip(flat, hashes.tolist(), strict=True)}) == len({*flat}) == len({*hashes.tolist()})


@given(texts, st.integers(1, 4))
def test_runs_are_those_of_each_text_alone(texts: list[str], size: int) -> None:
    found, offsets = runs_of_words(texts, size, symbols=True)
    for number, text in enumerate(texts):
        alone, _ = word_hashes([text], symbols=True)
        expected = windows(alone, min(size, len(alone))).tolist() if len(alone) else []
        assert found[offsets[number] : offsets[number + 1]].tolist() == expected


def test_a_hash_is_the_polynomial_of_the_word() -> None:
    hashes, _ = word_hashes(["x word, \u00e9t\u00e9"], symbols=True)
    terms = [
        [(ord(c) + 1) * int(FACTOR) ** i for i, c in enumerate(word)] for word in ("x", "word", ",", "\u00e9t\u00e9")
    ]
    assert hashes.tolist() == mixed(np.array([sum(of) % (1 << 64) for of in terms], np.uint64)).tolist()
