"""Texts that a decoder is to write, as token ids that the end-of-text token closes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from tasks.objectives.shared.padding import CHARACTERS_PER_TOKEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Target(NamedTuple):
    """`ids` [T], the last of which ends the text; `size`: bytes of the text they spell."""

    ids: npt.NDArray[np.int64]
    size: int


def tokenized_targets(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, end: int, max_length: int
) -> list[Target]:
    """Each text with the special tokens its tokenizer adds and `end` behind them; a longer one is cut, then ended."""
    cut = [text[: max_length * CHARACTERS_PER_TOKEN] for text in texts]
    found = tokenizer(cut, return_attention_mask=False, return_offsets_mapping=True)
    targets = []
    for text, ids, offsets in zip(texts, found["input_ids"], found["offset_mapping"], strict=True):
        body = ids[:-1] if ids and ids[-1] == end else ids
        kept = body[: max_length - 1]
        whole = len(kept) == len(body) and len(text) <= max_length * CHARACTERS_PER_TOKEN
        spelled = text if whole else text[: max((stop for _, stop in offsets[: len(kept)]), default=0)]
        targets.append(Target(np.array([*kept, end], np.int64), len(spelled.encode())))
    return targets
