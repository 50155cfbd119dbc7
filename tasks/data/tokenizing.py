"""Tokenizers, trained (byte-level BPE here; WordPiece and Unigram beside it), saved and loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from infra.errors import StageError
from tasks.data.unigram import train_unigram
from tasks.data.wordpiece import train_wordpiece

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|endoftext|>"
PAD = "<|pad|>"
UNKNOWN = "<|unk|>"


def train_tokenizer(algorithm: str, texts: Iterable[list[str]], vocab_size: int) -> Tokenizer:
    """A tokenizer with ids 0 = <|endoftext|>, 1 = <|pad|>, and, unless it is `bpe`, 2 = <|unk|>."""
    if algorithm == "wordpiece":
        return train_wordpiece(texts, vocab_size, [END, PAD, UNKNOWN])
    if algorithm == "unigram":
        return train_unigram(texts, vocab_size, END, PAD, UNKNOWN)
    return train_bpe(texts, vocab_size)


def train_bpe(texts: Iterable[list[str]], vocab_size: int) -> Tokenizer:
    """Byte-level BPE (Sennrich et al., 2016; Radford et al., 2019) with ids 0 = <|endoftext|> and 1 = <|pad|>.

    It can encode any text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write what `PreTrainedTokenizerFast.from_pretrained` reads, without importing transformers (5 s)."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "unk_token": END if tokenizer.token_to_id(UNKNOWN) is None else UNKNOWN,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(1e30),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_tokenizer(folder: Path) -> tuple[Tokenizer, int]:
    """(tokenizer, id of its end-of-text token) of an artifact. Raises StageError where it has no such token."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    end = config.get("eos_token")
    id_ = tokenizer.token_to_id(end["content"] if isinstance(end, dict) else end) if end else None
    if id_ is None:
        raise StageError(
            "the tokenizer has no end-of-text token", where="tokenizer_config.json", hint="Set `eos_token` in it."
        )
    return tokenizer, id_
