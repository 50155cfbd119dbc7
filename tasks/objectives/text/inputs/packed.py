"""Rows of a `tokens` artifact as features: what every objective over packed text shares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from infra.errors import StageError
from tasks.data.tokens.packing import PackedRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tasks.stage import InputArtifact


def packed_rows(
    data: InputArtifact, split: str, tokenizer: PreTrainedTokenizerFast | None, max_length: int
) -> PackedRows:
    """A split's rows, memory-mapped. Raises StageError if it is missing or empty, longer than the model reads, or made
    with other tokens than the model's tokenizer has, which would train on noise. (It may have more.)
    """
    if not (data.path / f"{split}.rows.safetensors").exists():
        raise StageError(f"no split {split!r}", where=data.stage, hint=f"It has: {_splits(data.path)}.")
    rows = PackedRows(data.path, split)
    if not len(rows):
        raise StageError(f"split {split!r} is empty", where=data.stage, hint="Add data.")
    context = int(json.loads((data.path / "tokens.json").read_text(encoding="utf-8"))["context"])
    if context > max_length:
        raise StageError(
            f"rows of {context} tokens do not fit a model of {max_length}",
            where=data.stage,
            hint="Pack with a `context` the model can hold.",
        )
    _same_tokens(data, tokenizer)
    return rows


def _same_tokens(data: InputArtifact, tokenizer: PreTrainedTokenizerFast | None) -> None:
    from tasks.processors.tokenizer import load_tokenizer

    packed_with = load_tokenizer(data.path / "tokenizer")
    if tokenizer is None or packed_with is None:
        return
    ids = tokenizer.get_vocab()
    other = [token for token, number in packed_with.get_vocab().items() if ids.get(token) != number]
    if other:
        raise StageError(
            f"the rows were packed with another tokenizer than the model's: {len(other)} tokens differ, such as "
            f"{min(other)!r}",
            where=data.stage,
            hint="Pack them with the tokenizer that the model was made with.",
        )


def tokenizer_of(data: InputArtifact, tokenizer: PreTrainedTokenizerFast | None) -> PreTrainedTokenizerFast:
    """The model's tokenizer; where it has none, the one that packed rows were made with. StageError without either."""
    from tasks.processors.tokenizer import load_tokenizer, require_tokenizer

    return require_tokenizer(tokenizer or load_tokenizer(data.path / "tokenizer"))


def _splits(folder: Path) -> str:
    found = sorted(path.name.partition(".")[0] for path in folder.glob("*.rows.safetensors"))
    return ", ".join(found) or "none"
