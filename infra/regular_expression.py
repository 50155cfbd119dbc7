"""Regular expressions out of a pipeline file: compiled when the file is checked, bounded in time when they are used."""

from __future__ import annotations

import re
import warnings
from functools import lru_cache

from infra.time_limit import TimeLimit

SECONDS = 2.0
"""For one text; microseconds are usual."""


@lru_cache(maxsize=64)
def compiled(pattern: str) -> re.Pattern[str]:
    """Raises ValueError that says what is wrong with it, and where."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of sets that may mean something else in a later Python
            return re.compile(pattern)
    except (re.error, RecursionError, OverflowError, MemoryError) as error:
        raise ValueError(f"no regular expression: {error}") from error


def time_limit(pattern: str, where: str) -> TimeLimit:
    """For the searches of a pattern."""
    shown = pattern if len(pattern) <= 60 else f"{pattern[:60]}..."
    return TimeLimit(f"the regular expression {shown}", seconds=SECONDS, where=where)
