"""The words of texts as 64-bit hashes, found and hashed with numpy, a batch at a time: no word becomes an object.

A word is what `\\w+` of `re` finds: letters, digits and underscores in a row. Its hash is a polynomial in its
characters modulo 2^64, taken from running sums over the whole batch (Karp & Rabin, 1987), and mixed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from tasks.data.hashing import FACTOR, Hashes, mixed, windows

Offsets = npt.NDArray[np.int64]
PIECE = 1 << 18
"""Characters looked at together: what numpy needs for them is bounded, and fits a processor's cache."""
BLANK = re.compile(r"\s")
OTHER, WORD, SYMBOL = range(3)


def word_hashes(texts: Sequence[str], *, symbols: bool) -> tuple[Hashes, Offsets]:
    """(hash of each word, text after text; where each text begins among them [texts + 1]).

    symbols: whether every other character that is not blank counts as a word too.
    """
    joined = "\n".join([*texts, ""])
    lengths = np.array([len(text) + 1 for text in texts], np.int64)
    found = [(np.zeros(0, np.int64), np.zeros(0, np.uint64))]
    found += [(begin + places, hashes) for begin, piece in _pieces(joined) for places, hashes in [_of(piece, symbols)]]
    places = np.concatenate([places for places, _ in found])
    offsets = np.searchsorted(places, np.concatenate([[0], np.cumsum(lengths)]))
    return np.concatenate([hashes for _, hashes in found]), offsets.astype(np.int64)


def runs_of_words(texts: Sequence[str], size: int, *, symbols: bool) -> tuple[Hashes, Offsets]:
    """(hash of every run of `size` words, or of all words of a text that has fewer; where each text begins)."""
    words, begins = word_hashes(texts, symbols=symbols)
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


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """(begin, piece): pieces that begin and end where no word does."""
    begin = 0
    while begin < len(text):
        blank = BLANK.search(text, begin + PIECE)
        end = blank.end() if blank else len(text)
        yield begin, text[begin:end]
        begin = end


def _of(piece: str, symbols: bool) -> tuple[Offsets, Hashes]:
    """(where each word of the piece begins, its hash)."""
    codes = np.frombuffer(piece.encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = _kinds(table_size(codes))[codes]
    word = kinds == WORD
    edges = np.diff(word, prepend=False, append=False)
    begins, ends = np.flatnonzero(edges[:-1] & word), np.flatnonzero(edges)[1::2]
    if symbols:
        single = np.flatnonzero(kinds == SYMBOL)
        begins, ends = np.concatenate([begins, single]), np.concatenate([ends, single + 1])
        order = np.argsort(begins, kind="stable")
        begins, ends = begins[order], ends[order]
    up, down = _powers(1 << max(len(codes) - 1, PIECE).bit_length())
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum((codes + np.uint32(1)) * up[: len(codes)], out=sums[1:])
    return begins, mixed((sums[ends] - sums[begins]) * down[begins])


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
def _kinds(count: int) -> npt.NDArray[np.uint8]:
    """For each of the first `count` code points whether it belongs to a word, is blank, or something else."""
    kinds = np.full(count, SYMBOL, np.uint8)
    for code, character in enumerate(map(chr, range(count))):
        if character.isalnum() or character == "_":
            kinds[code] = WORD
        elif character.isspace():
            kinds[code] = OTHER
    return kinds
