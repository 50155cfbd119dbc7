"""Rows of a `tokens` artifact as features: what every objective over packed text shares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from infra.errors import StageError
from tasks.data.packing import PackedRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tasks.stage import InputArtifact


def packed_rows(data: InputArtifact, split: str, max_length: int) -> PackedRows:
    """A split's rows, memory-mapped. Raises StageError if it is missing or empty, or longer than the model reads."""
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
    return rows


def tokenizer_of(data: InputArtifact, tokenizer: PreTrainedTokenizerFast | None) -> PreTrainedTokenizerFast:
    """The model's tokenizer; where it has none, the one that packed rows were made with. StageError without either."""
    from tasks.training.model_files import load_tokenizer

    found = tokenizer or load_tokenizer(data.path / "tokenizer")
    if found is None:
        raise StageError("these data are text, and the model has no tokenizer", hint="Train from a model that has one.")
    return found


def _splits(folder: Path) -> str:
    found = sorted(path.name.partition(".")[0] for path in folder.glob("*.rows.safetensors"))
    return ", ".join(found) or "none"
