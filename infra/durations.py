"""Lengths of time as people write them: `90s`, `15m`, `6h`, `7d`; a bare number is seconds."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
WRITTEN = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")


def seconds(value: Any) -> Any:
    """Seconds of a duration. Raises ValueError on a text that is none."""
    if not isinstance(value, str):
        return value
    found = WRITTEN.fullmatch(value.strip())
    if found is None:
        raise ValueError(f"{value!r} is no length of time: write 90s, 15m, 6h or 7d")
    return float(found[1]) * UNITS[found[2]]


def duration_text(length: float) -> str:
    """Seconds for a person, in the largest unit of which there is a whole one: `15m`, `1.5h`, `8d`."""
    unit = next((unit for unit in ("d", "h", "m") if length >= UNITS[unit]), "s")
    return f"{length / UNITS[unit]:.3g}{unit}"


Duration = Annotated[float, BeforeValidator(seconds), Field(ge=0)]
"""A pydantic field in seconds that takes such texts."""
