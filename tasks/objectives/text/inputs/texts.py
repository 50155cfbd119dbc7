"""From a `dataset` artifact's rows to padded token batches: what every objective over text shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from infra.errors import StageError
from tasks.objectives.shared.padding import CHARACTERS_PER_TOKEN
from tasks.processors.tokenizer import require_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def tokenized(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast | None, max_length: int
) -> list[npt.NDArray[np.int32]]:
    """Each text's first `max_length` token ids (special tokens as the tokenizer adds them), at least one."""
    return _rows(tokenizer, _encoded(texts, tokenizer, max_length)[1])


def _encoded(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast | None, max_length: int, **asked: bool
) -> tuple[list[str], Any]:
    """(the texts as far as they were read, what the tokenizer makes of them)."""
    tokenizer = require_tokenizer(tokenizer)
    cut = [text[: max_length * CHARACTERS_PER_TOKEN] for text in texts]
    given: dict[str, Any] = {"truncation": True, "max_length": max_length, "return_attention_mask": False, **asked}
    return cut, tokenizer(cut, padding=False, **given)


def _rows(tokenizer: Any, found: Any) -> list[npt.NDArray[np.int32]]:
    empty = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0
    return [np.asarray(ids or [empty], dtype=np.int32) for ids in found["input_ids"]]


def bytes_of_tokens(text: str, offsets: Sequence[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """UTF-8 bytes of the text that each token stands for: from the end of those before it to its own end.

    offsets: (begin, end) of each token in characters, as tokenizers give them.
    """
    sizes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    before = np.r_[0, np.cumsum(1 + (sizes > 0x7F) + (sizes > 0x7FF) + (sizes > 0xFFFF))]
    ends = (
        np.maximum.accumulate(np.asarray([end for _, end in offsets], np.int64)) if offsets else np.zeros(0, np.int64)
    )
    found: npt.NDArray[np.int64] = np.diff(before[np.r_[0, ends]])
    return found


def end_of_text(tokenizer: PreTrainedTokenizerFast | None) -> int:
    """The id of the end-of-text token. Raises StageError if there is none."""
    end = require_tokenizer(tokenizer).eos_token_id
    if end is None:
        raise StageError(
            "the tokenizer has no end-of-text token, so that no model could learn to end a text",
            hint="Set `eos_token` in its tokenizer_config.json, or `end_of_text: false` in the objective.",
        )
    return int(end)


def measured_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast | None, max_length: int, *, close: bool = False
) -> list[dict[str, Any]]:
    """`input_ids` as `tokenized` gives them, and `bytes`: how many all tokens but the first stand for.

    close: end each text that was not cut with the end-of-text token, which stands for no bytes. Raises StageError where
    the tokenizer has none.
    """
    cut, found = _encoded(texts, tokenizer, max_length, return_offsets_mapping=True)
    sizes = [int(bytes_of_tokens(*pair)[1:].sum()) for pair in zip(cut, found["offset_mapping"], strict=True)]
    rows = _rows(tokenizer, found)
    if close:
        end = end_of_text(tokenizer)
        rows = [row if row[-1] == end or len(row) >= max_length else np.append(row, np.int32(end)) for row in rows]
    return [{"input_ids": row, "bytes": size} for row, size in zip(rows, sizes, strict=True)]


def tokenized_pairs(
    texts: Sequence[str], seconds: Sequence[str], tokenizer: PreTrainedTokenizerFast | None, max_length: int
) -> list[dict[str, npt.NDArray[np.int32]]]:
    """`input_ids` and `token_type_ids` of each pair as the tokenizer joins it, the longer text cut first.

    Token types are those of the tokenizer's own template (RoBERTa's: zeros); a model that knows none never sees them.
    """
    tokenizer = require_tokenizer(tokenizer)
    limit = max_length * CHARACTERS_PER_TOKEN
    found = tokenizer(
        [text[:limit] for text in texts],
        [text[:limit] for text in seconds],
        truncation=True,
        max_length=max_length,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=True,
    )
    empty = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0
    rows = []
    for ids, types in zip(found["input_ids"], found["token_type_ids"], strict=True):
        row = np.asarray(ids or [empty], dtype=np.int32)
        rows.append({"input_ids": row, "token_type_ids": np.array(types or [0], np.int32)})
    return rows
