"""A Unigram language model over pieces (Kudo, 2018), trained by SentencePiece and read by the tokenizers library.

The tokenizers library trains one too, but to other bytes every time. SentencePiece on one thread does not. What no
piece spells is spelled in bytes, so no text is unknown to it.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LONGEST_SENTENCE = 1 << 20


def train_unigram(
    texts: Iterable[list[str]], vocab_size: int, end: str, pad: str, unknown: str, special: Sequence[str] = ()
) -> Tokenizer:
    """A tokenizer with ids 0, 1, 2 for end, pad and unknown, then the special tokens, 256 bytes, and pieces.

    It has at most `vocab_size` of them.
    """
    import sentencepiece
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers

    model = io.BytesIO()
    given: dict[str, Any] = {"control_symbols": list(special)} if special else {}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for batch in texts for text in batch for line in text.split("\n") if line.strip()),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_by_whitespace=True,
        allow_whitespace_only_pieces=True,
        max_sentence_length=LONGEST_SENTENCE,
        num_threads=1,
        minloglevel=2,
        eos_id=0,
        pad_id=1,
        unk_id=2,
        bos_id=-1,
        eos_piece=end,
        pad_piece=pad,
        unk_piece=unknown,
        **given,
    )
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [(trained.id_to_piece(i), trained.get_score(i)) for i in range(trained.get_piece_size())]
    made = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Prepend("▁"), normalizers.Replace(Regex(" "), "▁")]
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([end, pad, unknown, *special])
    return made
