"""Tokenizers: training (byte-level BPE here; WordPiece and Unigram beside it), and fast exact encoding.

Source code repeats its words: 12 MB of it hold 4 M words and 50,000 different ones. `Encoder` therefore splits
ASCII texts with the standard library's regex, encodes each different word once, and gathers the ids with numpy. The
tokenizers library stays the judge: it encodes the words, every text that is not ASCII, and everything where the
tokenizer is not the plain byte-level one made here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from infra.errors import StageError
from tasks.data.unigram import train_unigram
from tasks.data.wordpiece import train_wordpiece

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|endoftext|>"
PAD = "<|pad|>"
UNKNOWN = "<|unk|>"
# The GPT-2 pattern, with \p{L} and \p{N} as they read in ASCII.
WORDS = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)
MAX_WORDS = 1_000_000
Ids = npt.NDArray[np.int32]


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


class _Words(dict[str, int]):
    """Word -> running number, counted up by looking a word up."""

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        return number


class Encoder:
    """Encodes batches of texts, remembering the words it has met."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        state = json.loads(tokenizer.to_str())
        self.plain = _is_plain_byte_level(state)
        self.added = [token["content"] for token in state["added_tokens"]]
        self.by_library = 0
        """Texts that the tokenizers library encoded whole."""
        self._forget()

    def _forget(self) -> None:
        self.words = _Words()
        self.ids: Ids = np.zeros(0, np.int32)
        self.lengths: Ids = np.zeros(0, np.int32)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of each text, without special tokens; equal to `tokenizer.encode(text).ids`."""
        if len(self.words) > MAX_WORDS:
            self._forget()
        by_words = [i for i, text in enumerate(texts) if self._is_by_words(text)]
        rest = sorted(set(range(len(texts))) - set(by_words))
        self.by_library += len(rest)
        found: dict[int, Ids] = dict(zip(rest, self._library([texts[i] for i in rest]), strict=True))
        known = self.words.__getitem__
        numbered = {i: np.fromiter(map(known, WORDS.findall(texts[i])), np.int64) for i in by_words}
        self._learn()
        starts = np.cumsum(self.lengths, dtype=np.int64) - self.lengths
        for i, numbers in numbered.items():
            lengths = self.lengths[numbers]
            ends = np.cumsum(lengths, dtype=np.int64)
            shift = np.repeat(starts[numbers] - (ends - lengths), lengths)
            found[i] = self.ids[shift + np.arange(len(shift))]
        return [found[i] for i in range(len(texts))]

    def _is_by_words(self, text: str) -> bool:
        """An added token spelled out in a text is cut out before words are: such a text is left to the library."""
        return self.plain and text.isascii() and not any(token in text for token in self.added)

    def _library(self, texts: list[str]) -> list[Ids]:
        encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(e.ids, np.int32) for e in encoded]

    def _learn(self) -> None:
        """Encode the words met since the last call."""
        new = self._library(list(self.words)[len(self.lengths) :])
        if new:
            self.ids = np.concatenate([self.ids, *new])
            self.lengths = np.concatenate([self.lengths, np.array([len(ids) for ids in new], np.int32)])


def _is_plain_byte_level(state: dict[str, Any]) -> bool:
    """Whether the words of a text can be encoded one by one: no normaliser, GPT-2 words, no padding."""
    pre = state["pre_tokenizer"] or {}
    return (
        state["normalizer"] is None
        and pre.get("type") == "ByteLevel"
        and not pre["add_prefix_space"]
        and pre.get("use_regex", True)
        and state["model"]["type"] == "BPE"
        and state["padding"] is None
        and state["truncation"] is None
    )
