"""What drawing noise needs of a tokenizer: made once, and carried by every feature of a split as one shared object."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from infra.errors import StageError
from tasks.data.tokens.tokenizing import SENTINEL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Flags = npt.NDArray[np.bool_]
BYTE_LEVEL_SPACE, SENTENCEPIECE_SPACE = "Ġ", "▁"


class Words(NamedTuple):
    """Which tokens make a word together: one that `continues` [V] goes on with the word that one `unfinished` [V] left.

    Both are flags; special tokens are part of no word.
    """

    continues: Flags
    unfinished: Flags


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """V token ids. `special`: bool [V]; `sentinels`: int64 [S], in their order; `end`: of the end-of-text token.

    words: how words are made of tokens; only where it was asked for.
    """

    size: int
    special: Flags
    mask: int | None
    end: int | None
    sentinels: npt.NDArray[np.int64]
    words: Words | None = None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, *, whole_words: bool = False) -> Vocabulary:
        """Raises StageError where whole words are asked for and the tokens do not show where one begins."""
        ids = tokenizer.get_vocab()
        size = 1 + max(ids.values())
        special = np.zeros(size, np.bool_)
        special[[i for i, token in tokenizer.added_tokens_decoder.items() if token.special]] = True
        special[list(tokenizer.all_special_ids)] = True
        sentinels: list[int] = []
        while (name := SENTINEL.format(len(sentinels))) in ids:
            sentinels.append(ids[name])
        special[sentinels] = True
        return cls(
            size,
            special,
            ids.get(str(tokenizer.mask_token)),
            ids.get(str(tokenizer.eos_token)),
            np.array(sentinels, np.int64),
            _words(tokenizer, ids, size) if whole_words else None,
        )

    @cached_property
    def ordinary(self) -> npt.NDArray[np.int64]:
        """The ids that are not special, in order."""
        return np.flatnonzero(~self.special)

    def require_end(self, where: str) -> int:
        """The id of the end-of-text token. Raises StageError if there is none."""
        if self.end is None:
            raise StageError(
                "the tokenizer has no end-of-text token, so that no model could learn to end a text",
                where=where,
                hint="Set `eos_token` in its tokenizer_config.json.",
            )
        return self.end


def _words(tokenizer: PreTrainedTokenizerFast, ids: Mapping[str, int], size: int) -> Words:
    """WordPiece marks the tokens inside a word (##); byte-level BPE and SentencePiece those that begin one (Ġ, ▁).

    Where beginnings are marked, punctuation begins and ends a word without a mark: `f(x)` is four.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if (prefix := state["model"].get("continuing_subword_prefix")) and state["model"]["type"] == "WordPiece":
        return Words(_flags(size, (i for token, i in ids.items() if token.startswith(prefix))), np.ones(size, np.bool_))
    if "ByteLevel" in json.dumps(state["pre_tokenizer"]):
        spelled = _byte_level_characters()
        mark, pieces = BYTE_LEVEL_SPACE, {token: [spelled.get(c, 0) in WORD_BYTES for c in token] for token in ids}
    elif any(token.startswith(SENTENCEPIECE_SPACE) for token in ids):
        mark, pieces = SENTENCEPIECE_SPACE, {token: _inside_words(token) for token in ids}
    else:
        raise StageError(
            "the tokenizer does not mark which tokens begin a word",
            where="whole_words",
            hint="It can be WordPiece, byte-level BPE or SentencePiece; or leave `whole_words` out.",
        )
    return Words(
        _flags(size, (ids[token] for token, inside in pieces.items() if inside[0])),
        _flags(size, (ids[token] for token, inside in pieces.items() if inside[-1] or token.endswith(mark))),
    )


def _flags(size: int, numbers: Iterable[int]) -> Flags:
    found = np.zeros(size, np.bool_)
    found[list(numbers)] = True
    return found


WORD_BYTES = frozenset(b for b in range(256) if b >= 0x80 or chr(b).isalnum() or b == ord("_"))
"""Bytes that go on with a word: those of ASCII letters and digits, and of all characters beyond ASCII."""


def _byte_level_characters() -> dict[str, int]:
    """Character -> byte, as GPT-2 spells bytes (Radford et al., 2019): printable ones as they are, others from 256."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _inside_words(token: str) -> list[bool]:
    if token.startswith("<0x") and len(token) == 6:  # a byte that no piece spells
        return [int(token[3:5], 16) in WORD_BYTES]
    return [c.isalnum() or c == "_" for c in token]
