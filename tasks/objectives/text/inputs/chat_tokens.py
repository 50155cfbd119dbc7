"""Token ids of a conversation in which every answer begins with a token of its own, as it does when a model answers.

A model is asked with the tokens of all that stands before its answer. So the text before an answer and the answer are
tokenized apart. Tokenized as one text, a token can reach over the border: of "A: " and "yes" a byte-level tokenizer
makes "A", ":", " yes". The first token of the answer would then never be learned, and the token that really ends the
prompt (" ") would be one that training never held there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast


class Tokens(NamedTuple):
    """Ids, where in the text each token stands, (begin, end) in characters, and which is the first behind each cut."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    first: dict[int, int]


def conversation_tokens(
    texts: Sequence[str], starts: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerFast
) -> list[Tokens]:
    """The tokens of each text, cut at its `starts` (where its answers begin) before it is tokenized; one may be 0.

    What follows a cut is the going on of a text: tokenizers that write a space before each text (SentencePiece's) write
    none there. No special tokens are added; those that stand in the text are found as ever.
    """
    borders = [
        [0, *(place for place in sorted(set(found)) if 0 < place < len(text)), len(text)]
        for text, found in zip(texts, starts, strict=True)
    ]
    pieces = [text[a:b] for text, places in zip(texts, borders, strict=True) for a, b in pairwise(places)]
    encoded = iter(_encoded(pieces, tokenizer))
    without, special = _without_prefix(tokenizer), set(tokenizer.added_tokens_decoder)
    made = []
    for text, places in zip(texts, borders, strict=True):
        whole = Tokens([], [], {})
        for a, b in pairwise(places):
            piece = next(encoded)
            if without is not None and whole.ids and whole.ids[-1] not in special:
                piece = _going_on(text[a:b], piece, without, special)
            whole.first[a] = len(whole.ids)
            whole.ids.extend(piece.ids)
            whole.offsets.extend((a + begin, a + end) for begin, end in piece.offsets)
        made.append(whole)
    return made


def _encoded(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> Iterable[Tokens]:
    if not texts:
        return ()
    found: Any = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=True
    )
    return (Tokens(*pair, {}) for pair in zip(found["input_ids"], found["offset_mapping"], strict=True))


def _going_on(text: str, piece: Tokens, without: Tokenizer, special: set[int]) -> Tokens:
    """A piece whose beginning, up to its first special token, is tokenized without a space before it."""
    first = next((i for i, id_ in enumerate(piece.ids) if id_ in special), len(piece.ids))
    end = piece.offsets[first][0] if first < len(piece.ids) else len(text)
    lead = without.encode(text[:end], add_special_tokens=False)
    return Tokens([*lead.ids, *piece.ids[first:]], [*lead.offsets, *piece.offsets[first:]], {})


def _without_prefix(tokenizer: PreTrainedTokenizerFast) -> Tokenizer | None:
    """The same tokenizer, which writes no space before a text; None where it writes none anyhow."""
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    changed = {**state, "truncation": None, "padding": None}
    for part in ("normalizer", "pre_tokenizer"):
        changed[part] = _no_prefix(state[part])
    if all(changed[part] == state[part] for part in ("normalizer", "pre_tokenizer")):
        return None
    made: Tokenizer = Tokenizer.from_str(json.dumps(changed))
    return made


def _no_prefix(part: Any) -> Any:
    """The JSON of a normalizer or pre-tokenizer, or of a sequence of them, less what writes a space before a text."""
    if not isinstance(part, dict):
        return part
    if part["type"] == "Sequence":
        inner = next(key for key, value in part.items() if isinstance(value, list))
        return {**part, inner: [kept for one in part[inner] if (kept := _no_prefix(one)) is not None]}
    if part["type"] == "Prepend":
        return None
    if part["type"] == "Metaspace":
        return {**part, "prepend_scheme": "never"}
    if part["type"] == "ByteLevel":
        return {**part, "add_prefix_space": False}
    return part
