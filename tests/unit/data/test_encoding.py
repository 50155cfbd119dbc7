"""Ids are those of the tokenizers library, whoever made them; and what the library has to look at."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tasks.data.tokens.encoding import EVERY, Encoder, unsure_characters
from tasks.data.tokens.tokenizing import train_bpe, train_tokenizer

STDLIB = Path(sysconfig.get_path("stdlib"))
CODE = [path.read_text(encoding="utf-8") for path in sorted((STDLIB / "json").glob("*.py"))]
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def split_by_pattern(pattern: str) -> Tokenizer:
    """A byte-level BPE whose words are those of a pattern, as newer models have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    parts = [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CODE, trainer)
    return tokenizer


GPT2, LLAMA = Encoder(train_bpe(iter([CODE]), 600)), Encoder(split_by_pattern(LLAMA3))
text = st.text(
    st.sampled_from("ab Z09_'.,\n\t\r\x0b\x0c\x1c\x1fsdmtrevl\u00e9\u0301\u4e00\u0416\u00b2\u2003")
    | st.characters(codec="utf-8"),
    max_size=40,
)


def library(encoder: Encoder, texts: list[str]) -> list[list[int]]:
    return [e.ids for e in encoder.tokenizer.encode_batch(texts, add_special_tokens=False)]


@pytest.mark.parametrize("encoder", [GPT2, LLAMA], ids=["gpt2", "llama3"])
def test_both_ways_give_what_the_library_gives(encoder: Encoder) -> None:
    texts = [
        *CODE,
        "",
        "\u00fcn\u00ef",
        "a <|endoftext|> b",
        "\x1c\x1d \x0b\x0c\x85",
        "\U0001f600",
        "\u6f22\u5b57",
    ] * EVERY
    assert encoder.fast is not None
    for encode in (encoder.by_fast, encoder.by_library):
        assert [ids.tolist() for ids in encode(texts).documents()] == library(encoder, texts)


@settings(max_examples=400, deadline=None)
@given(text)
@pytest.mark.parametrize("encoder", [GPT2, LLAMA], ids=["gpt2", "llama3"])
def test_what_is_not_compared_is_the_same_too(encoder: Encoder, text: str) -> None:
    """The second text of a batch is compared only if it is unsure; so is every one that differs."""
    assume(not encoder._is_unsure(text))
    compared = encoder.compared
    found = encoder.by_fast(["", text]).documents()[1]
    assert encoder.compared == compared + 1
    assert found.tolist() == library(encoder, [text])[0]


def test_every_text_that_spells_an_added_token_is_compared() -> None:
    tokenizer = train_bpe(iter([CODE]), 600)
    added = ["<|a|>", "<b>", "[c]", "d"]
    tokenizer.add_tokens(added)
    encoder = Encoder(tokenizer)
    texts = ["", *(f"x{token}y" for token in added), *added, "<", "a|>", "[", "[c", "<|endoftext|"]
    assert [encoder._is_unsure(text) for text in texts] == [any(token in text for token in added) for text in texts]


def test_characters_that_another_unicode_may_class_otherwise() -> None:
    plain, strict = unsure_characters(0x110000, symbols=False), unsure_characters(0x110000, symbols=True)
    for sure in "a9 \n\u00e9\u0416\u4e2d\u3042":
        assert not plain[ord(sure)] and not strict[ord(sure)]
    new_letter, unassigned, emoji = 0x1E900, 0x0378, 0x1F600
    assert plain[new_letter] and plain[unassigned]
    assert strict[emoji] and not plain[emoji]


@pytest.mark.parametrize("algorithm", ["wordpiece", "unigram"])
def test_other_tokenizers_are_left_to_the_library(algorithm: str) -> None:
    encoder = Encoder(train_tokenizer(algorithm, iter([CODE]), 400))
    assert encoder.fast is None
    assert [ids.tolist() for ids in encoder.by_library(CODE).documents()] == library(encoder, CODE)
