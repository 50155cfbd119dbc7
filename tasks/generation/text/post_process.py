"""What is done to an output before it is scored: never to a reference, so that none of it can make a score too good."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import Field, field_validator

from infra.regular_expression import compiled, time_limit
from infra.time_limit import TookTooLong
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
        groups = compiled(pattern).groups
        if groups != 1:
            raise ValueError(f"it has {groups} groups and needs one, the answer; (?:...) groups without counting")
        return pattern


Step = Literal["strip", "first_line", "lowercase"] | Regex
"""`strip`: no space at the ends. `first_line`: the first line that is not blank. `lowercase`: as `str.lower` does."""


class PostProcess:
    """Takes an output through all steps, in their order. late: outputs in which a pattern took too long to find
    anything, which is as if it had found nothing.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.late: set[str] = set()
        self._steps = [(step, self._search(step) if isinstance(step, Regex) else None) for step in steps]

    def _search(self, step: Regex) -> Callable[[str], re.Match[str] | None]:
        pattern, limit = compiled(step.regex), time_limit(step.regex, "post_process")
        return lambda text: limit(lambda: pattern.search(text))

    def __call__(self, output: str) -> str:
        """Raises StageError where the patterns take too long for many outputs."""
        text = output
        for step, search in self._steps:
            if search is not None:
                try:
                    found = search(text)
                except TookTooLong:
                    self.late.add(output)
                    found = None
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
