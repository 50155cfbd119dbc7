"""Tokenizers, trained (byte-level BPE here; WordPiece and Unigram beside it), saved and loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from infra.errors import StageError
from tasks.data.tokens.unigram import train_unigram
from tasks.data.tokens.wordpiece import train_wordpiece

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|endoftext|>"
PAD = "<|pad|>"
UNKNOWN = "<|unk|>"
MASK = "<|mask|>"
CLS, SEP = "<|cls|>", "<|sep|>"
SENTINEL = "<extra_id_{}>"
"""What stands for a left-out span of text, as T5 spells it (Raffel et al., 2020)."""
BYTES = 256


def train_tokenizer(
    algorithm: str, texts: Iterable[list[str]], vocab_size: int, special: Sequence[str] = ()
) -> Tokenizer:
    """A tokenizer with ids 0 = <|endoftext|>, 1 = <|pad|>, and, unless it is `bpe`, 2 = <|unk|>; then `special`.

    Where <|cls|> and <|sep|> are among them, a text is encoded as `<|cls|> text <|sep|>`.
    """
    fixed = 2 if algorithm == "bpe" else 3
    least = fixed + len(special) + (0 if algorithm == "wordpiece" else BYTES)
    if vocab_size < least:
        raise StageError(
            f"{vocab_size} tokens do not hold the {fixed + len(special)} special ones"
            + ("" if algorithm == "wordpiece" else f" and {BYTES} bytes"),
            where="vocab_size",
            hint=f"Set it to more than {least}.",
        )
    if algorithm == "wordpiece":
        tokenizer = train_wordpiece(texts, vocab_size, [END, PAD, UNKNOWN, *special], unknown=UNKNOWN)
    elif algorithm == "unigram":
        tokenizer = train_unigram(texts, vocab_size, END, PAD, UNKNOWN, special)
    else:
        tokenizer = train_bpe(texts, vocab_size, special)
    if CLS in special and SEP in special:
        _enclose(tokenizer)
    return tokenizer


def _enclose(tokenizer: Tokenizer) -> None:
    """Texts, and pairs of texts, are encoded as BERT has them (Devlin et al., 2019)."""
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (CLS, SEP)],
    )


def train_bpe(texts: Iterable[list[str]], vocab_size: int, special: Sequence[str] = ()) -> Tokenizer:
    """Byte-level BPE (Sennrich et al., 2016; Radford et al., 2019) with ids 0 = <|endoftext|> and 1 = <|pad|>.

    It can encode any text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD, *special],
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
        **{
            name: token
            for name, token in {"mask_token": MASK, "cls_token": CLS, "sep_token": SEP}.items()
            if tokenizer.token_to_id(token) is not None
        },
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(1e30),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_tokenizer(folder: Path) -> tuple[Tokenizer, int]:
    """(tokenizer, id of its end-of-text token) of an artifact. Raises StageError where it has no such token.

    It neither cuts nor pads texts, whatever its file says.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    end = config.get("eos_token")
    id_ = tokenizer.token_to_id(end["content"] if isinstance(end, dict) else end) if end else None
    if id_ is None:
        raise StageError(
            "the tokenizer has no end-of-text token", where="tokenizer_config.json", hint="Set `eos_token` in it."
        )
    return tokenizer, id_
