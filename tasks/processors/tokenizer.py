"""The tokenizer beside a model: its files, and whether a model can read what it makes of texts."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from infra.errors import StageError
from tasks.processors.padding import padding_id
from tasks.processors.processor import Processor

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from tasks.processors.processor import Port

log = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class Tokenizer(Processor):
    """Texts -> token ids, at most `limit` of them (`tasks/processors/processor.py`).

    tokenizer: None for a model that knows token ids alone. folder: where its files lie.
    """

    names: ClassVar[tuple[str, ...]] = TOKENIZER_FILES

    tokenizer: PreTrainedTokenizerFast | None
    limit: int
    folder: Path | None = None

    @classmethod
    def load(cls, folder: Path, limit: int) -> Tokenizer:
        """What lies beside a model."""
        return cls(load_tokenizer(folder), limit, folder)

    @property
    def readable(self) -> bool:
        return self.tokenizer is not None

    def limited(self, limit: int | None) -> Tokenizer:
        return self if limit is None else replace(self, limit=limit)

    def save(self, folder: Path) -> None:
        """Copy its files, so that their bytes never change."""
        there = [self.folder / name for name in self.names] if self.folder is not None else []
        for path in filter(Path.exists, there):
            shutil.copyfile(path, folder / path.name)

    def config(self, config_class: Any, known: Collection[str]) -> dict[str, Any]:
        from tasks.processors.tokenizer_config import config_fields

        return {} if self.tokenizer is None else config_fields(self.tokenizer, config_class, known)

    def adapt(self, model: PreTrainedModel) -> None:
        """Give a model of texts that has no padding token one (`tasks/processors/padding.py`)."""
        token = padding_id(model.config, self.tokenizer)
        if token is None or token == model.config.pad_token_id:
            return
        if self.tokenizer is not None and token != self.tokenizer.pad_token_id:
            log.warning("model and tokenizer have no padding token; token %d stands in for it, behind a mask", token)
        model.config.pad_token_id = token

    def require_fit(self, model: PreTrainedModel, *, where: str, limit_where: str | None = None) -> None:
        check_vocabulary(model, self.tokenizer, where=where)
        check_length(model, self.limit, where=limit_where or where)

    def difference(self, other: Processor | None) -> str:
        theirs = other.tokenizer if isinstance(other, Tokenizer) else None
        if (theirs and theirs.get_vocab()) == (self.tokenizer and self.tokenizer.get_vocab()):
            return ""
        return "another vocabulary"

    def probe(self, ports: Mapping[str, Port], config: Any, seed: int) -> Iterator[dict[str, npt.NDArray[Any]]]:
        from tasks.processors.token_probes import random_batches

        return random_batches(config, list(ports), self.limit, seed)

    def example(self, ports: Mapping[str, Port], config: Any) -> dict[str, npt.NDArray[Any]]:
        from tasks.processors.token_probes import random_batches

        return next(random_batches(config, list(ports), self.limit, 0, [(2, min(7, self.limit))]))

    def code(self, format: str | None) -> str:
        from tasks.processors.tokenizer_code import loading_code

        return loading_code(self.folder, self.limit, format)


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
