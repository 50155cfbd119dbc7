"""What is done to an output before it is scored: never to a reference, so that none of it can make a score too good."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator

from tasks.stage import StageParams


class Regex(StageParams):
    """The part of an output that is the answer."""

    regex: str = Field(
        description="Pattern with one group, looked for anywhere: what the group matches first is the answer; empty "
        "where nothing matches. `.` matches no line break; begin with (?s) where it should."
    )

    @field_validator("regex")
    @classmethod
    def _one_group(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from error
        if groups != 1:
            raise ValueError(f"it has {groups} groups and needs one, the answer; (?:...) groups without counting")
        return pattern


Step = Literal["strip", "first_line", "lowercase"] | Regex
"""`strip`: no space at the ends. `first_line`: the first line that is not blank. `lowercase`: as `str.lower` does."""


def post_processed(text: str, steps: Sequence[Step]) -> str:
    """The output after all steps, in their order."""
    for step in steps:
        if isinstance(step, Regex):
            found = re.search(step.regex, text)
            text = (found[1] or "") if found else ""
        elif step == "strip":
            text = text.strip()
        elif step == "first_line":
            text = next((line for line in text.splitlines() if line.strip()), "")
        else:
            text = text.lower()
    return text


def cut_before(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """(the text before the first of some strings, whether there was one)."""
    places = [place for place in map(text.find, stop) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)
