"""WordPiece as BERT has it (Schuster and Nakajima, 2012; Devlin et al., 2019), trained to the same bytes every time.

The tokenizers library numbers the pieces inside words (`##x`) in the order of a hash table, which differs from run to
run, and breaks ties between merges by these numbers. Here every character inside a word is written as a character of
its own, from Unicode's private planes, so that the library sees plain BPE, whose alphabet it sorts; then the pieces are
read back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PREFIX = "##"
PRIVATE = 0xF0000

LINE = 10_000


def train_wordpiece(texts: Iterable[list[str]], vocab_size: int, special: list[str], *, unknown: str) -> Tokenizer:
    """A cased WordPiece tokenizer whose first ids are the special tokens; `unknown` is one of them."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for batch in texts:
        for text in batch:
            counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    inside = {char: chr(PRIVATE + i) for i, char in enumerate(sorted({c for word in counts for c in word[1:]}))}
    alphabet = sorted({word[0] for word in counts} | set(inside.values()))
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    plain.train_from_iterator(_lines(counts, inside), trainer)
    outside = {private: char for char, private in inside.items()}
    vocabulary = {_read_back(token, outside): number for token, number in plain.get_vocab().items()}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown, continuing_subword_prefix=PREFIX))
    made.normalizer, made.pre_tokenizer = normalizer, splitter
    made.decoder = decoders.WordPiece(prefix=PREFIX, cleanup=False)
    made.add_special_tokens(special)
    return made


def _lines(counts: Counter[str], inside: dict[str, str]) -> Iterator[str]:
    """Every word as often as it was met, in the spelling that marks the inside of words."""
    for word in sorted(counts):
        spelled = word[0] + "".join(inside[char] for char in word[1:]) + " "
        left = counts[word]
        while left > 0:
            take = min(left, LINE)
            yield spelled * take
            left -= take


def _read_back(token: str, outside: dict[str, str]) -> str:
    """A piece as WordPiece writes it: `##` before one that does not begin a word."""
    if token[0] in outside:
        return PREFIX + "".join(outside[char] for char in token)
    return token[0] + "".join(outside.get(char, char) for char in token[1:])
