"""Words and their tags, from the columns of a dataset to labelled word pieces."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from infra.errors import StageError
from tasks.data.dataset.split import read_split
from tasks.data.plain_values import plain_text
from tasks.losses.cross_entropy import IGNORED
from tasks.objectives.shared.padding import CHARACTERS_PER_TOKEN
from tasks.processors.tokenizer import require_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tasks.stage import InputArtifact


@dataclass(frozen=True)
class Tagged:
    """A row: as many tags as words, at least one of each."""

    id: str
    words: list[str]
    tags: list[str]


def read_tagged(data: InputArtifact, split: str, words: str, tags: str) -> list[Tagged]:
    """The rows of a split in frozen order; words, tags: names of the columns. StageError on a row without them."""
    table = read_split(data, split, columns=("id", words, tags))
    found = []
    for id, *values in zip(table["id"], table[words], table[tags], strict=True):
        row_words, given = (_listed(v, id, name, data.stage) for v, name in zip(values, (words, tags), strict=True))
        # A tag in two spellings is one, as the labels of a dataset are.
        row = Tagged(id, row_words, [plain_text(tag) or tag for tag in given])
        if len(row.words) != len(row.tags):
            raise StageError(
                f"{id}: {len(row.words)} words and {len(row.tags)} tags",
                where=data.stage,
                hint=f"`{words}` and `{tags}` must be of one length: every word has one tag.",
            )
        if not row.words:
            raise StageError(f"{id}: no words", where=data.stage, hint=f"Leave rows out whose `{words}` are empty.")
        found.append(row)
    return found


def _listed(value: Any, id: str, column: str, stage: str) -> list[str]:
    """A list of strings (numbers as they are spelled), of the JSON it is stored as."""
    try:
        items = json.loads(value)
    except (TypeError, ValueError):
        items = None
    if not isinstance(items, list) or any(isinstance(i, bool) or not isinstance(i, str | int) for i in items):
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
        raise StageError(
            f"{id}: column {column!r} holds no list of strings but {shown}",
            where=stage,
            hint=f"Declare it in the dataset's source: `columns: {{{column}: json}}`.",
        )
    return [str(item) for item in items]


@dataclass(frozen=True)
class Pieces:
    """A row as word pieces. input_ids: int32 [T]; words: int32 [T], which word a piece is of, -1 for special tokens."""

    input_ids: npt.NDArray[np.int32]
    words: npt.NDArray[np.int32]


def word_pieces(
    rows: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerFast | None, max_length: int
) -> list[Pieces]:
    """Each row's first `max_length` pieces, words never run together."""
    tokenizer = require_tokenizer(tokenizer)
    # A byte-level tokenizer knows words by the space before them. Where it does not add it (`add_prefix_space`), words
    # given one by one would all look like parts of one word.
    space = " " if _needs_space(tokenizer) else ""
    # An empty word stays one without a piece.
    spelled = [[space + word[: max_length * CHARACTERS_PER_TOKEN] if word else word for word in row] for row in rows]
    found = tokenizer(spelled, is_split_into_words=True, truncation=True, max_length=max_length, padding=False)
    pieces = []
    for i, ids in enumerate(found["input_ids"]):
        words = [-1 if word is None else word for word in found.word_ids(i)]
        pieces.append(Pieces(np.asarray(ids, np.int32), np.asarray(words, np.int32)))
    return pieces


def first_pieces(words: npt.NDArray[np.int32], count: int) -> npt.NDArray[np.int64]:
    """int64 [count]: the place of each word's first piece, -1 where it has none: cut off, or empty."""
    found = np.full(count, -1, np.int64)
    # Backwards, so that the first of equal words is written last.
    places = np.flatnonzero(words >= 0)[::-1]
    found[words[places]] = places
    return found


def labelled(
    row: Tagged, pieces: Pieces, labels: Sequence[str], later: Sequence[int] | None, *, where: tuple[str, str]
) -> dict[str, Any]:
    """A feature: `input_ids`; `labels` int64 [T] of pieces; `starts` and `tags` int64 [W] of words; `words` themselves.

    later: what the pieces after a word's first are labelled with, by the word's class; None: nothing. where: stage and
    split, for errors: a tag that is none of `labels`, or no word that has a piece.
    """
    numbers = {label: i for i, label in enumerate(labels)}
    unknown = next((tag for tag in row.tags if tag not in numbers), None)
    if unknown is not None:
        raise StageError(
            f"{row.id}: tag {unknown!r} of split {where[1]!r} is none of those learned",
            where=where[0],
            hint=f"Known tags: {', '.join(labels)}.",
        )
    tags = np.array([numbers[tag] for tag in row.tags], np.int64)
    starts = first_pieces(pieces.words, len(tags))
    if starts.max() < 0:
        raise StageError(
            f"{row.id}: none of its {len(tags)} words has a piece among the first {len(pieces.words)} tokens",
            where=where[0],
            hint="Its words are empty, or `max_length` is too small.",
        )
    found = np.full(len(pieces.words), IGNORED, np.int64)
    if later is not None:
        inner = pieces.words >= 0
        found[inner] = np.asarray(later)[tags[pieces.words[inner]]]
    found[starts[starts >= 0]] = tags[starts >= 0]
    return {"input_ids": pieces.input_ids, "labels": found, "starts": starts, "tags": tags, "words": row.words}


def padded(rows: Sequence[npt.NDArray[Any]], filler: int) -> npt.NDArray[np.int64]:
    """Rows of numbers as one array, filled up on the right to the longest."""
    found = np.full((len(rows), max(len(row) for row in rows)), filler, np.int64)
    for i, row in enumerate(rows):
        found[i, : len(row)] = row
    return found


def _needs_space(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the tokenizer is byte-level and sets no space before a text."""
    state = json.loads(tokenizer.backend_tokenizer.to_str()).get("pre_tokenizer") or {}
    steps = state.get("pretokenizers", [state])
    return any(step.get("type") == "ByteLevel" and not step.get("add_prefix_space") for step in steps)
