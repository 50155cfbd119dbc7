"""Prompts and references from the texts of a `dataset`: a source and its target, or a text and how it goes on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.errors import StageError
from tasks.data.dataset.split import read_split
from tasks.objectives.shared.text_prompt import Prompt
from tasks.objectives.text.inputs.texts import tokenized
from tasks.processors.tokenizer import require_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tasks.stage import InputArtifact


def source_prompts(
    data: InputArtifact, split: str, target: str, tokenizer: PreTrainedTokenizerFast | None, max_length: int
) -> list[Prompt]:
    """`text` is the prompt, cut as it is in training; column `target` the reference."""
    table = read_split(data, split, columns=("id", "text", target))
    cut = tokenized(table["text"], tokenizer, max_length)
    whole = _ids(tokenizer, table["text"])
    rows = zip(table["id"], cut, whole, table["text"], table[target], strict=True)
    return [
        Prompt(str(name), text, reference if isinstance(reference, str) else "", ids, max(len(ids), len(all)))
        for name, ids, all, text, reference in rows
    ]


def continuations(
    data: InputArtifact, split: str, tokenizer: PreTrainedTokenizerFast | None, max_length: int
) -> list[Prompt]:
    """The first half of each text, by characters, up to the end of a word; the reference is what follows.

    The last `max_length` tokens of it; what the tokenizer closes a text with is left out.
    """
    if data.manifest.type != "dataset":
        raise StageError("packed tokens have no texts to go on from", where=data.stage, hint="Name the dataset.")
    table = read_split(data, split, columns=("id", "text"))
    halves = [half(text) for text in table["text"]]
    end = getattr(tokenizer, "eos_token_id", None)
    found = []
    for name, (text, rest), ids in zip(
        table["id"], halves, _ids(tokenizer, [first for first, _ in halves]), strict=True
    ):
        begin = ids[:-1] if len(ids) > 1 and ids[-1] == end else ids
        kept = np.asarray(begin[-max_length:] or [end or 0], np.int64)
        found.append(Prompt(str(name), text, rest, kept, len(begin)))
    return found


def half(text: str) -> tuple[str, str]:
    """A text cut before the space nearest to its middle, or in the middle; the space is in neither part."""
    middle = len(text) // 2
    spaces = [found.start() for found in re.finditer(r"\s+", text.rstrip()) if found.start()]
    place = min(spaces, key=lambda at: abs(at - middle), default=middle)
    return text[:place], text[place:].strip()


def _ids(tokenizer: PreTrainedTokenizerFast | None, texts: Sequence[str]) -> list[list[int]]:
    """Of whole texts, with the special tokens the tokenizer adds."""
    found: Any = require_tokenizer(tokenizer)(list(texts), return_attention_mask=False)
    rows: list[list[int]] = found["input_ids"]
    return rows
