"""What a tokenizer decides of a new model's config: the size of its vocabulary, and its special tokens."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from tasks.processors.padding import padding_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")


def config_fields(tokenizer: PreTrainedTokenizerFast, cls: Any, known: Collection[str]) -> dict[str, Any]:
    """Of the fields `known` those that the tokenizer decides, for a config of class `cls`."""
    values = {name: getattr(tokenizer, name) for name in SPECIAL_TOKENS if name in known}
    if "pad_token_id" in values:
        values["pad_token_id"] = padding_id(None, tokenizer)
    return {"vocab_size": len(tokenizer), **values, **_decoder_ids(tokenizer, cls(), known)}


def _decoder_ids(tokenizer: PreTrainedTokenizerFast, usual: Any, known: Collection[str]) -> dict[str, Any]:
    """What the decoder of an encoder-decoder begins and ends with: the token that has that role in the type's defaults.

    T5 begins with padding (its config has no field for it), BART with the end of a text, which it also ends with.
    """
    if not usual.is_encoder_decoder:
        return {}
    roles = {getattr(usual, name, None): getattr(tokenizer, name) for name in reversed(SPECIAL_TOKENS[:3])}
    roles.pop(None, None)
    start = roles.get(getattr(usual, "decoder_start_token_id", None), tokenizer.pad_token_id)
    ends = {"forced_eos_token_id": tokenizer.eos_token_id} if "forced_eos_token_id" in known else {}
    return {"decoder_start_token_id": start, **ends}
