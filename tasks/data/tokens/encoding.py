"""Text -> token ids, as the tokenizers library gives them, but not at its speed.

gigatoken encodes byte-level BPE 50 to 100 times as fast. It is one maintainer's beta, so it is believed only as far as
it is checked: of every file each 256th document, and each that holds a character whose class may differ between two
versions of Unicode or that spells an added token, is encoded by the library too. One id that differs, and the whole
file is the library's. Where the tokenizer is of another kind, so is everything.
"""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tasks.data.words import table_size

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EVERY = 256
"""One document in so many is encoded twice, the first of a batch among them."""
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Encoded:
    """Ids of some documents, one after another [tokens], and how many each has [documents]."""

    ids: npt.NDArray[np.uint32]
    lengths: npt.NDArray[np.int64]

    def closed_by(self, end: int) -> Encoded:
        """The same with the id `end` behind each document."""
        lengths = self.lengths + 1
        places = np.cumsum(lengths) - 1
        inside = np.ones(int(lengths.sum()), np.bool_)
        inside[places] = False
        ids = np.full(len(inside), end, np.uint32)
        ids[inside] = self.ids
        return Encoded(ids, lengths)

    def documents(self) -> list[npt.NDArray[np.uint32]]:
        """The ids of each document."""
        return np.split(self.ids, np.cumsum(self.lengths)[:-1]) if len(self.lengths) else []


class Differs(Exception):
    """The fast backend gave other ids than the library; the message says where."""


class Encoder:
    """Encodes batches of documents, without special tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        state = json.loads(tokenizer.to_str())
        self.fast = _fast(state)
        self.compared = 0
        """Documents that were encoded by both."""
        added = sorted(token["content"] for token in state["added_tokens"])
        self.added = [(first, list(group)) for first, group in itertools.groupby(added, key=lambda token: token[:1])]
        """Added tokens by their first character: a single one is found at memory speed, and most texts lack it."""
        pattern = json.dumps(state["pre_tokenizer"])
        self.symbols = "p{S}" in pattern or "p{P}" in pattern

    def by_library(self, texts: Sequence[str]) -> Encoded:
        """What the tokenizers library gives."""
        found = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
        lengths = np.array([len(ids) for ids in found], np.int64)
        ids = np.fromiter(itertools.chain.from_iterable(found), np.uint32, int(lengths.sum()))
        return Encoded(ids, lengths)

    def by_fast(self, texts: Sequence[str]) -> Encoded:
        """What the fast backend gives. Raises Differs if a document that is compared has other ids."""
        layout: Any = self.fast.encode_batch(list(texts), parallel=False).layout  # files are encoded side by side
        offsets, ids = np.asarray(layout.offsets.data, np.int64), np.asarray(layout.content.data)
        numbers = [i for i, text in enumerate(texts) if i % EVERY == 0 or self._is_unsure(text)]
        self.compared += len(numbers)
        for number, expected in zip(numbers, self.by_library([texts[i] for i in numbers]).documents(), strict=True):
            mine = ids[offsets[number] : offsets[number + 1]]
            if not np.array_equal(mine, expected):
                raise Differs(f"{len(mine)} ids against {len(expected)} for one of {len(texts[number])} characters")
        return Encoded(ids[offsets[0] : offsets[-1]], np.diff(offsets))

    def _is_unsure(self, text: str) -> bool:
        for first, tokens in self.added:
            if first in text and any(token in text for token in tokens):
                return True
        if text.isascii():
            return False
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        return bool(unsure_characters(table_size(codes), self.symbols)[codes].any())


@cache
def unsure_characters(count: int, symbols: bool) -> Mask:
    """For each of the first `count` code points whether another table of Unicode may give it another class.

    That is, whether its class in this Python's version is unknown, or is not that of Unicode 3.2. Words are split by
    the classes of characters, so these are where they may be split differently. symbols: whether it matters if a
    character is a symbol or punctuation; else those that came later (emoji) are not among them.
    """
    then, now = unicodedata.ucd_3_2_0.category, unicodedata.category
    unsure = np.ones(count, np.bool_)
    for code, character in enumerate(map(chr, range(count))):
        old, new = then(character), now(character)
        later = old == "Cn" and new[0] in "PS" and not symbols
        unsure[code] = new == "Cn" or (old != new and not later)
    return unsure


def _fast(state: dict[str, Any]) -> Any:
    """gigatoken's tokenizer for a byte-level BPE without normaliser, or with NFC, which is stable; else None."""
    normalizer = state["normalizer"]
    if (
        state["model"]["type"] != "BPE"
        or state["model"].get("byte_fallback")
        or (normalizer is not None and normalizer["type"] != "NFC")
        or state["padding"] is not None
        or state["truncation"] is not None
    ):
        return None
    import gigatoken

    try:
        return gigatoken.Tokenizer.from_json(json.dumps(state))
    except ValueError:  # a pre-tokenizer it does not know
        return None
