"""Token ids that a batch of texts needs beside the examples'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.processors.padding import padding_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class SpecialIds:
    """What a batch is padded with, and what a decoder begins with."""

    pad: int = 0
    decoder_start: int = 0

    @classmethod
    def of(cls, config: Any, tokenizer: PreTrainedTokenizerFast | None = None) -> SpecialIds:
        """As a model's config has them; what pads where it does not say: see `tasks/processors/padding.py`."""
        pad = padding_id(config, tokenizer) or 0
        start = getattr(config, "decoder_start_token_id", None)
        return cls(pad, start if isinstance(start, int) else pad)
