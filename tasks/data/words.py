"""The words of texts as 64-bit hashes, found and hashed with numpy, a batch at a time: no word becomes an object.

A word is letters, digits, underscores and the marks on letters in a row. Scripts that put no spaces between words
(Chinese, Japanese, Thai, Lao, Khmer, Burmese and their kin) have no such thing: there each character is a word, also in
the middle of others. A word's hash is a polynomial in its characters modulo 2^64, taken from running sums over the
whole batch (Karp and Rabin, 1987), and mixed; that of a run is one in its words' hashes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from tasks.data.hashing import FACTOR, Hashes, mixed, windows

Offsets = npt.NDArray[np.int64]
Kinds = npt.NDArray[np.uint8]
PIECE = 1 << 18
"""Characters looked at together: what numpy needs for them is bounded, and fits a processor's cache."""
BLANK = re.compile(r"\s")
OTHER, WORD, SYMBOL, CHARACTER, LETTER = range(5)
"""What a character is: blank or nothing, part of a word, a symbol; of a script without spaces, where it stands for a
word or a part of one (CHARACTER), or for a sound (LETTER)."""
UNSPACED = {
    CHARACTER: (
        (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x312F), (0x31A0, 0x31BF), (0x31F0, 0x31FF), (0x3400, 0x4DBF),
        (0x4E00, 0x9FFF), (0xA000, 0xA48F), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x16FE0, 0x18CFF), (0x1AFF0, 0x1B2FF),
        (0x20000, 0x323AF),
    ),
    LETTER: (
        (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19DF), (0x1A20, 0x1AAF), (0x1B00, 0x1B7F),
        (0xA980, 0xA9FF), (0xAA60, 0xAA7F),
    ),
}  # fmt: skip
"""Blocks of Unicode: Han, kana, bopomofo, Yi, Tangut; Thai and Lao, Burmese, Khmer, Tai, Balinese, Javanese."""
FIRST_UNSPACED = 0x0E00
NO_MARKS = ((0xFE00, 0xFE0F), (0xE0100, 0xE01EF))
"""Variation selectors: they belong to emoji as often as to letters."""
SHARES = np.array([0, 6, 6, 3, 2], np.int64)
"""Of what a character is: how much of a word it makes where runs are measured, in sixths. A Chinese word has about two
characters, a Thai one three letters or more."""


def word_hashes(texts: Sequence[str], *, symbols: bool) -> tuple[Hashes, Offsets]:
    """(hash of each word, text after text; where each text begins among them [texts + 1]).

    symbols: whether every other character that is not blank counts as a word too.
    """
    hashes, offsets, _ = _words(texts, symbols)
    return hashes, offsets


def _words(texts: Sequence[str], symbols: bool) -> tuple[Hashes, Offsets, list[Kinds]]:
    """As `word_hashes`, and what the first character of each word is, in pieces."""
    joined = "\n".join([*texts, ""])
    lengths = np.array([len(text) + 1 for text in texts], np.int64)
    places, hashes, kinds = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)], [np.zeros(0, np.uint8)]
    for begin, piece in _pieces(joined):
        begins, of_piece, table = _of(piece, symbols)
        places.append(begin + begins)
        hashes.append(of_piece)
        kinds.append(table)
    offsets = np.searchsorted(np.concatenate(places), np.concatenate([[0], np.cumsum(lengths)]))
    return np.concatenate(hashes), offsets.astype(np.int64), kinds


def runs_of_words(texts: Sequence[str], size: int, *, symbols: bool) -> tuple[Hashes, Offsets]:
    """(hash of every run of `size` words, or of all words of a text that has fewer; where each text begins)."""
    words, begins = word_hashes(texts, symbols=symbols)
    return _runs_of_equal(words, begins, size)


def measured_runs(texts: Sequence[str], size: int) -> tuple[Hashes, Offsets]:
    """As `runs_of_words` without symbols, but a character of a script without spaces makes a part of a word (`SHARES`),
    so that a run says as much there as elsewhere.
    """
    words, begins, pieces = _words(texts, symbols=False)
    kinds = np.concatenate(pieces)
    if kinds.max(initial=0) < CHARACTER:
        return _runs_of_equal(words, begins, size)
    counts = np.diff(begins)
    length = np.concatenate([[0], np.cumsum(SHARES[kinds])])
    ends = np.searchsorted(length, length[:-1] + SHARES[WORD] * size)
    is_run = ends <= np.repeat(begins[1:], counts)
    runs_before = np.concatenate([[0], np.cumsum(is_run)])[begins]
    short = np.flatnonzero((counts > 0) & (np.diff(runs_before) == 0))
    is_run[begins[short]] = True
    ends[begins[short]] = begins[short + 1]
    first = np.flatnonzero(is_run)
    offsets = np.concatenate([[0], np.cumsum(np.where(counts > 0, np.maximum(np.diff(runs_before), 1), 0))])
    return _runs(words, first, ends[first]), offsets


def _runs_of_equal(words: Hashes, begins: Offsets, size: int) -> tuple[Hashes, Offsets]:
    counts = np.diff(begins)
    offsets = np.concatenate([[0], np.cumsum(np.where(counts >= size, counts - size + 1, np.minimum(counts, 1)))])
    found = np.zeros(int(offsets[-1]), np.uint64)
    short = (counts > 0) & (counts < size)
    for text in np.flatnonzero(short).tolist():
        found[offsets[text]] = windows(words[begins[text] : begins[text + 1]], int(counts[text]))[0]
    if len(words) >= size:
        inside = np.arange(len(words) - size + 1) + size <= np.repeat(begins[1:], counts)[: len(words) - size + 1]
        of_long = np.repeat(~short, np.diff(offsets))
        found[of_long] = windows(words, size)[inside]
    return found, offsets


def _runs(words: Hashes, begins: Offsets, ends: Offsets) -> Hashes:
    """Hash of each of some runs of words, as `windows` has it: from running sums, because their lengths differ."""
    up, down = _powers(1 << max(len(words) - 1, PIECE).bit_length())
    sums = np.zeros(len(words) + 1, np.uint64)
    np.cumsum(words * down[: len(words)], out=sums[1:])
    return mixed((sums[ends] - sums[begins]) * up[ends - 1])


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """(begin, piece): pieces that begin and end where no word does."""
    begin = 0
    while begin < len(text):
        blank = BLANK.search(text, begin + PIECE)
        end = blank.end() if blank else len(text)
        yield begin, text[begin:end]
        begin = end


def _of(piece: str, symbols: bool) -> tuple[Offsets, Hashes, Kinds]:
    """(where each word of the piece begins, its hash, what its first character is)."""
    codes = np.frombuffer(piece.encode("utf-32-le", "surrogatepass"), np.uint32)
    table = _kinds(table_size(codes))
    kinds = table[codes]
    word = kinds == WORD
    edges = np.diff(word, prepend=False, append=False)
    begins, ends = np.flatnonzero(edges[:-1] & word), np.flatnonzero(edges)[1::2]
    if symbols or len(table) > FIRST_UNSPACED:
        single = np.flatnonzero(kinds >= (SYMBOL if symbols else CHARACTER))
        begins, ends = np.concatenate([begins, single]), np.concatenate([ends, single + 1])
        order = np.argsort(begins, kind="stable")
        begins, ends = begins[order], ends[order]
    up, down = _powers(1 << max(len(codes) - 1, PIECE).bit_length())
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum((codes + np.uint32(1)) * up[: len(codes)], out=sums[1:])
    return begins, mixed((sums[ends] - sums[begins]) * down[begins]), kinds[begins]


def unspaced(character: str) -> bool:
    """Whether a character is of a script that puts no spaces between words."""
    code = ord(character)
    return code >= FIRST_UNSPACED and any(a <= code <= b for blocks in UNSPACED.values() for a, b in blocks)


@cache
def _powers(count: int) -> tuple[Hashes, Hashes]:
    """FACTOR^i and FACTOR^-i modulo 2^64 for i < count."""
    both = []
    for factor in (int(FACTOR), pow(int(FACTOR), -1, 1 << 64)):
        powers = np.full(count, factor, np.uint64)
        powers[0] = 1
        both.append(np.multiply.accumulate(powers))
    return both[0], both[1]


def table_size(codes: npt.NDArray[np.uint32]) -> int:
    """How long a table has to be to be looked up with these code points: one of a few lengths, so that few are made."""
    return min(1 << int(codes.max(initial=127)).bit_length(), 0x110000)


@cache
def _kinds(count: int) -> Kinds:
    """What each of the first `count` code points is."""
    kinds = np.full(count, SYMBOL, np.uint8)
    for code, character in enumerate(map(chr, range(count))):
        if character.isalnum() or character == "_" or unicodedata.category(character) in ("Mn", "Mc"):
            kinds[code] = WORD
        elif character.isspace():
            kinds[code] = OTHER
    for first, last in NO_MARKS:
        kinds[first : last + 1] = SYMBOL
    for kind, blocks in UNSPACED.items():
        for first, last in blocks:
            block = kinds[first : last + 1]
            block[block == WORD] = kind
    return kinds
