"""Words and their hashes, against a slow reading: the same words, equal hashes for equal words only, in any company."""

from __future__ import annotations

import random
import re
import unicodedata
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data import words
from tasks.data.hashing import FACTOR, mixed, windows
from tasks.data.selection.decontamination import Overlap, runs
from tasks.data.selection.dedup import NearDuplicates, bands, first_of_near, signatures
from tasks.data.words import CHARACTER, LETTER, UNSPACED, measured_runs, runs_of_words, word_hashes

PATTERNS = {True: re.compile(r"\w+|[^\w\s]"), False: re.compile(r"\w+")}
LETTERS = (
    "ab_9 \n\t.,-\u00e9\u0301\u4e2d\u56fd\u304b\u30ab\u0e17\u0e31\u0939\u093f\ud55c\u2003\x1c\U0001f600\ufe0f\U00020000"
)
texts = st.lists(st.text(st.sampled_from(LETTERS) | st.characters(), max_size=30), max_size=6)


def kind(character: str) -> str | int:
    """`word`, `symbol`, `blank`; CHARACTER or LETTER of what stands without spaces."""
    selects = 0xFE00 <= ord(character) <= 0xFE0F or ord(character) >= 0xE0100
    if character.isalnum() or character == "_" or (unicodedata.category(character) in ("Mn", "Mc") and not selects):
        blocks = [(kind, first, last) for kind, of in UNSPACED.items() for first, last in of]
        return next((kind for kind, first, last in blocks if first <= ord(character) <= last), "word")
    return "blank" if character.isspace() else "symbol"


def words_of(text: str, symbols: bool) -> list[str]:
    """The words, slowly."""
    found: list[str] = []
    before: str | int = "blank"
    for character in text:
        now = kind(character)
        if now == before == "word":
            found[-1] += character
        elif now != "blank" and (symbols or now != "symbol"):
            found.append(character)
        before = now
    return found


@given(texts, st.booleans(), st.sampled_from([1, 7, words.PIECE]))
def test_they_are_the_words_there_are(texts: list[str], symbols: bool, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "PIECE", piece)
        hashes, offsets = word_hashes(texts, symbols=symbols)
    expected = [words_of(text, symbols) for text in texts]
    assert np.diff(offsets).tolist() == [len(found) for found in expected]
    flat = [word for found in expected for word in found]
    assert len({*zip(flat, hashes.tolist(), strict=True)}) == len({*flat}) == len({*hashes.tolist()})


@given(st.text(st.sampled_from("ab_9 \n.,-\u00e9\u0416\ud55c\U0001f600")), st.booleans())
def test_with_spaces_between_them_they_are_what_re_finds(text: str, symbols: bool) -> None:
    assert words_of(text, symbols) == PATTERNS[symbols].findall(text)


@given(texts, st.integers(1, 4))
def test_runs_are_those_of_each_text_alone(texts: list[str], size: int) -> None:
    found, offsets = runs_of_words(texts, size, symbols=True)
    for number, text in enumerate(texts):
        alone, _ = word_hashes([text], symbols=True)
        expected = windows(alone, min(size, len(alone))).tolist() if len(alone) else []
        assert found[offsets[number] : offsets[number + 1]].tolist() == expected


def test_what_stands_without_spaces() -> None:
    by_kind = {
        CHARACTER: "\u4e2d\u56fd\u3005\u304b\u30ab\uff76\u3105\U00020000",
        LETTER: "\u0e17\u0e31\u0e95\u1780\u17b6\u1000\u102f\ua984",
        "word": "a\u0416\u05d0\u0939\u093f\u0bb5\ud55c\u10d0\u1208\u0301",
        "symbol": "\u3002\u30fb.\U0001f600\ufe0f\u200d",
    }
    for expected, characters in by_kind.items():
        assert [kind(character) for character in characters] == [expected] * len(characters)


@given(texts, st.integers(1, 4))
def test_measured_runs_are_as_long_as_so_many_words(texts: list[str], size: int) -> None:
    found, offsets = measured_runs(texts, size)
    for number, text in enumerate(texts):
        parts = {"word": 1, CHARACTER: 2, LETTER: 3}
        shares = [Fraction(1, parts[kind(word[0])]) for word in words_of(text, symbols=False)]
        hashes, _ = word_hashes([text], symbols=False)
        expected = []
        for begin in range(len(shares)):
            end = next((e for e in range(begin, len(shares) + 1) if sum(shares[begin:e]) >= size), None)
            expected += windows(hashes[begin:end], end - begin).tolist() if end else []
        if shares and not expected:
            expected = windows(hashes, len(hashes)).tolist()
        assert found[offsets[number] : offsets[number + 1]].tolist() == expected


CHINESE = "\u7684\u4e00\u662f\u5728\u4e0d\u4e86\u6709\u548c\u4eba\u8fd9\u4e2d\u5927"
THAI = "\u0e01\u0e02\u0e31\u0e07\u0e48\u0e08\u0e40\u0e0a\u0e32\u0e15\u0e19\u0e34"
JAPANESE = "\u3042\u304b\u3055\u305f\u306a\u30ab\u30bf\u6f22\u5b57\u672c\u65e5\u8a9e"
KHMER = "\u1780\u17d2\u179a\u17b6\u178f\u1793\u17c7\u1798\u179f\u17be\u1785\u1784"


@pytest.mark.parametrize("letters", [CHINESE, THAI, JAPANESE, KHMER])
def test_scripts_without_spaces_are_not_blind_spots(letters: str) -> None:
    """One character of sixty is another: a near-duplicate. A quotation in the middle of a text is found."""
    near, chosen = NearDuplicates(threshold=0.8), random.Random(4)
    docs = ["".join(chosen.choices(letters, k=60)) for _ in range(40)]
    changed = [f"{text[:30]}{'x' if i % 2 else letters[0]}{text[31:]}" for i, text in enumerate(docs)]
    found = signatures([*docs, *changed], near)
    keep = first_of_near(found, bands(found, near), near.threshold, np.zeros(80, np.bool_))
    assert keep[:40].all() and (~keep[40:]).sum() >= 35

    known = Overlap(np.unique(runs(docs[:20], 13)[0]), 13)
    around = ["".join(chosen.choices(letters, k=40)) for _ in docs]
    quoting = [f"{before}{text}, see {before}" for before, text in zip(around, docs, strict=True)]
    shares = known.shares(quoting)
    assert (shares[:20] > 0).all() and (shares[20:] == 0).all()


def test_a_phrase_that_everybody_writes_is_no_quotation() -> None:
    """Thirteen letters of Thai are three words: as a run they would take most of the training data out."""
    phrase = THAI + THAI[0]
    known = Overlap(np.unique(runs([THAI * 5], 13)[0]), 13)
    assert known.shares([f"abc {phrase} def {'x' * 50}"]).tolist() == [0.0]


def test_emoji_and_marks_alone_are_not_all_one_text() -> None:
    texts = ["\U0001f600\U0001f600", "\U0001f602", "\U0001f389\U0001f525", "!", "!!", "?", "...", "\u2764\ufe0f"]
    found, offsets = runs_of_words(texts, 5, symbols=True)
    assert np.diff(offsets).tolist() == [1] * len(texts) and len({*found.tolist()}) == len(texts)


def test_a_hash_is_the_polynomial_of_the_word() -> None:
    hashes, _ = word_hashes(["x word, \u00e9t\u00e9"], symbols=True)
    terms = [
        [(ord(c) + 1) * int(FACTOR) ** i for i, c in enumerate(word)] for word in ("x", "word", ",", "\u00e9t\u00e9")
    ]
    assert hashes.tolist() == mixed(np.array([sum(of) % (1 << 64) for of in terms], np.uint64)).tolist()
