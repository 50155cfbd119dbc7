"""Answers to questions, as SQuAD spells them, that keep their places when the text they stand in is repaired.

    {"text": ["amber"], "answer_start": [26]}     in a `json` column that passes through

Unicode's normal form has fewer characters than many a file, so what stood at 26 stands at 24 afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tasks.data.reading.typed_columns import Values, spelled_json

STARTS = '"answer_start"'


def moved(values: Values, before: str, after: str, repaired: Callable[[str], str]) -> Values:
    """The values of a row with its answers at their places in `after`, which is `before` repaired.

    An answer that does not stand where it should, before or after, stays as it is: who reads it refuses it by name.
    """
    return tuple(
        _moved(value, before, after, repaired) if isinstance(value, str) and STARTS in value else value
        for value in values
    )


def _moved(value: str, before: str, after: str, repaired: Callable[[str], str]) -> str:
    given = _answers(value)
    if given is None:
        return value
    for i, (text, start) in enumerate(zip(given["text"], given["answer_start"], strict=True)):
        place, answer = len(repaired(before[: max(start, 0)])), repaired(text)
        if start >= 0 and before[start:].startswith(text) and after[place:].startswith(answer):
            given["text"][i], given["answer_start"][i] = answer, place
    return spelled_json(given)


def _answers(value: str) -> dict[str, Any] | None:
    """The answers of a cell, None where it holds something else."""
    try:
        given = json.loads(value)
    except ValueError:
        return None
    if not isinstance(given, dict):
        return None
    texts, starts = given.get("text"), given.get("answer_start")
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        return None
    if not all(isinstance(text, str) for text in texts) or not all(type(start) is int for start in starts):
        return None
    return given
