"""Questions on texts, from the columns of a dataset to windows of tokens with the answers' places in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from infra.errors import StageError
from tasks.data.dataset.split import read_split
from tasks.processors.tokenizer import require_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tasks.stage import InputArtifact


@dataclass(frozen=True)
class Asked:
    """A row. answers: texts that stand in the context, and where, each without white space around; none: no answer."""

    id: str
    question: str
    context: str
    answers: list[tuple[str, int]]


def read_asked(data: InputArtifact, split: str, question: str, answers: str) -> list[Asked]:
    """The rows of a split in frozen order; question, answers: names of the columns. StageError on a bad row."""
    table = read_split(data, split, columns=("id", "text", question, answers))
    rows = zip(table["id"], table["text"], table[question], table[answers], strict=True)
    found = []
    for id, context, asked, given in rows:
        for name, value in (("text", context), (question, asked)):
            if not isinstance(value, str) or not value.strip():
                raise StageError(
                    f"{id}: column {name!r} is empty",
                    where=data.stage,
                    hint="A row needs a text (the dataset's `text_column`) and a question on it.",
                )
        found.append(Asked(id, asked, context, _answers(given, context, id, answers, data.stage)))
    return found


def _answers(value: Any, context: str, id: str, column: str, stage: str) -> list[tuple[str, int]]:
    try:
        given = json.loads(value)
        pairs = list(zip(given["text"], given["answer_start"], strict=True))
        if any(not isinstance(t, str) or isinstance(s, bool) or not isinstance(s, int) for t, s in pairs):
            raise TypeError("texts are strings and their places are integers")
    except (TypeError, ValueError, KeyError) as error:
        raise StageError(
            f"{id}: column {column!r} holds no answers: {error!r}",
            where=stage,
            hint='They are {"text": [...], "answer_start": [...]} of one length, both empty where there is no answer; '
            f"the dataset's source declares `columns: {{{column}: json}}`.",
        ) from error
    found = []
    for text, start in pairs:
        if not text.strip():
            raise StageError(
                f"{id}: an empty answer", where=stage, hint="Where there is no answer, both lists are empty."
            )
        stands = context[start : start + len(text)] if start >= 0 else ""
        if stands != text:
            raise StageError(
                f"{id}: the answer {text!r} does not stand at {start} of the text, but {stands!r}",
                where=stage,
                hint="`answer_start` counts characters (not bytes) from 0. Was the text changed after it was labelled? "
                "The dataset's `clean` takes answers along; `pii` and `quality: {c4: true}` do not: leave them out.",
            )
        found.append((text.strip(), start + len(text) - len(text.lstrip())))
    return found


@dataclass(frozen=True)
class Windows:
    """A question with all its text, in windows of [question, part of the text]. Lists: one entry a window, [T] each.

    characters: int32 [T, 2], where a token begins and ends in the text, -1 where it is none of the text's.
    """

    input_ids: list[npt.NDArray[np.int32]]
    token_types: list[npt.NDArray[np.int32]]
    characters: list[npt.NDArray[np.int32]]


def windows(
    rows: Sequence[Asked], tokenizer: PreTrainedTokenizerFast | None, max_length: int, stride: int, where: str
) -> list[Windows]:
    """Each row's windows of at most `max_length` tokens; neighbours share `stride`, but at most half of their text.

    Raises StageError on a question that leaves no room for the text.
    """
    tokenizer = require_tokenizer(tokenizer)
    special = tokenizer.num_special_tokens_to_add(pair=True)
    # Where a tokenizer sets nothing between question and text (those of decoders), a line break separates them.
    questions = [row.question if special else f"{row.question}\n" for row in rows]
    lengths = [len(ids) for ids in tokenizer(questions, add_special_tokens=False)["input_ids"]]
    groups: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        room = max_length - length - special
        if room < 1:
            raise StageError(
                f"{rows[i].id}: its question of {length} tokens leaves no room for the text in {max_length}",
                where=where,
                hint="Raise `max_length`, or leave the row out.",
            )
        groups.setdefault(min(stride, room // 2), []).append(i)
    found: list[Windows] = [Windows([], [], []) for _ in rows]
    for shared, members in sorted(groups.items()):
        encoded = tokenizer(
            [questions[i] for i in members],
            [rows[i].context for i in members],
            truncation="only_second",
            max_length=max_length,
            stride=shared,
            padding=False,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_token_type_ids=True,
        )
        for w, member in enumerate(encoded["overflow_to_sample_mapping"]):
            places = np.asarray(encoded["offset_mapping"][w], np.int32).reshape(-1, 2)
            text = np.array([s == 1 for s in encoded.sequence_ids(w)]) & (places[:, 1] > places[:, 0])
            row = found[members[member]]
            row.input_ids.append(np.asarray(encoded["input_ids"][w], np.int32))
            row.token_types.append(np.asarray(encoded["token_type_ids"][w], np.int32))
            row.characters.append(np.where(text[:, None], places, -1).astype(np.int32))
    return found


def target(characters: npt.NDArray[np.int32], answers: Sequence[tuple[str, int]], null: int) -> tuple[int, int]:
    """First and last token of the first answer in a window; `null` twice if the window does not hold all of it."""
    if not answers:
        return null, null
    text, begin = answers[0]
    end = begin + len(text)
    first, last = characters[:, 0], characters[:, 1]
    inside = np.flatnonzero((first >= 0) & (last > begin) & (first < end))
    if not len(inside) or first[inside[0]] > begin or last[inside[-1]] < end:
        return null, null
    return int(inside[0]), int(inside[-1])


def code_points(texts: Sequence[str]) -> npt.NDArray[np.int32]:
    """Texts as numbers of their characters, [number, longest], filled up with -1: strings that a batch can hold."""
    found = np.full((len(texts), max([1, *map(len, texts)])), -1, np.int32)
    for i, text in enumerate(texts):
        found[i, : len(text)] = np.frombuffer(text.encode("utf-32-le"), "<i4")
    return found


def spelled(points: npt.NDArray[Any]) -> str:
    """The text of one row of `code_points`."""
    return "".join(map(chr, points[points >= 0]))
