"""Which token pads a batch: never one that stands for a piece of text.

A mask hides padding, but not from everything: transformers finds the last token of a text, which a decoder's classifier
reads, by looking for the padding's id. Were that a word's, a text that ends in this word would be read without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra.errors import StageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

STAND_INS = ("pad", "eos", "bos", "sep", "cls", "mask")


def padding_id(config: Any, tokenizer: PreTrainedTokenizerFast | None) -> int | None:
    """The config's; where it has none the tokenizer's; else the end of text, or another special token, stands in.

    None without a tokenizer. Raises StageError where no token can.
    """
    own = getattr(config, "pad_token_id", None)
    if isinstance(own, int) and own >= 0:
        return own
    if tokenizer is None:
        return None
    ends = getattr(config, "eos_token_id", None)
    ends = ends[0] if isinstance(ends, list) and ends else ends
    known = [getattr(tokenizer, f"{role}_token_id") for role in STAND_INS]
    found = next((i for i in [*known[:2], ends, *known[2:], *sorted(tokenizer.all_special_ids)] if i is not None), None)
    if found is None:
        raise StageError(
            "the tokenizer has no special token, so that nothing could pad a batch but a word",
            where="tokenizer_config.json",
            hint="Add a `pad_token` or an `eos_token` to it, and to the tokens of its tokenizer.json.",
        )
    return int(found)
