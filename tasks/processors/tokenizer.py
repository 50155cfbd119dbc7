"""The tokenizer beside a model: its files, and whether a model can read what it makes of texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from infra.errors import StageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast | None:
    """The tokenizer beside a model, or None for models that read no text."""
    if not (folder / "tokenizer.json").exists():
        return None
    from transformers import PreTrainedTokenizerFast

    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    # What a tokenizer.json says of cutting and filling up texts is whoever encodes to decide.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def require_tokenizer(tokenizer: PreTrainedTokenizerFast | None) -> PreTrainedTokenizerFast:
    """The tokenizer, which texts cannot do without. Raises StageError where there is none."""
    if tokenizer is None:
        raise StageError(
            "this objective needs a tokenizer, and the model has none", hint="Train from a model that has one."
        )
    return tokenizer


POSITIONS = ("position_embeddings", "wpe", "embed_positions")
"""How modules with a table of positions are called."""


def longest_text(model: PreTrainedModel) -> int | None:
    """Tokens a model has learned positions for; None where positions are no table (rotary, relative).

    RoBERTa counts positions from behind its padding id, so that it reads fewer tokens than it has positions.
    """
    from torch import nn

    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in POSITIONS:
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            found.append(module.num_embeddings - unused - int(getattr(module, "offset", 0)))
    return min(found, default=None)


def check_length(model: PreTrainedModel, length: int, *, where: str) -> None:
    """Raises StageError if a model cannot read texts of `length` tokens, which would otherwise end it in a lookup."""
    longest = longest_text(model)
    if longest is None or length <= longest:
        return
    table = int(getattr(model.config, "max_position_embeddings", longest))
    raise StageError(
        f"the model has positions for texts of {longest} tokens, and these have up to {length}",
        where=where,
        hint=f"Give a new model `max_position_embeddings: {table + length - longest}`, or use shorter texts.",
    )


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None, *, where: str) -> None:
    """Raises StageError if a model has no embedding for some of the tokens. It may have more than there are."""
    size = getattr(model.config, "vocab_size", None)
    if tokenizer is not None and size is not None and size < len(tokenizer):
        raise StageError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {size}",
            where=where,
            hint="A new model takes `vocab_size` from its tokenizer: leave it out. One made elsewhere needs the "
            "tokenizer it was made with, and embeddings resized for tokens that were added.",
        )
