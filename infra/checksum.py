"""A checksum within a JSON object, over all of it: a flipped bit anywhere is damage, and never another fact.

    data = sealed({"count": 1})         # with "format": 2 and "checksum": sha256 of the rest
    unsealed(data)                      # {"count": 1}; raises ValueError where anything differs

Objects from before have neither field. A new one cannot turn into an old one by damage to the name of one of the two:
the other is there still.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import Any

from infra.errors import StoreError

FORMAT = 2
CHECKSUM = "checksum"


class OtherVersion(StoreError):
    """A whole object of another version of Forgeline."""


def sealed(data: dict[str, Any]) -> dict[str, Any]:
    """`data` with `format` and its checksum. Raises ValueError on NaN."""
    whole = {name: value for name, value in data.items() if name != CHECKSUM} | {"format": FORMAT}
    # As it will be read: tuples are lists then, and all names are text.
    return {**whole, CHECKSUM: checksum_of(json.loads(json.dumps(whole, allow_nan=False)))}


def is_sealed(data: dict[str, Any]) -> bool:
    """Whether the checksum is there and right."""
    return data.get(CHECKSUM) == checksum_of({name: value for name, value in data.items() if name != CHECKSUM})


def unsealed(data: Any, old: Collection[str] | None = None) -> dict[str, Any]:
    """What was sealed, or an object from before checksums as it is. `data`: as read from JSON.

    old: the fields that an object from before has, those and no others; None: they are not known.
    Raises ValueError on a damaged object, OtherVersion on a whole one of another version of Forgeline.
    """
    if not isinstance(data, dict):
        raise ValueError(f"a JSON object is expected, not a {type(data).__name__}")
    if CHECKSUM not in data:
        if data.keys() == set(old) and data.get("format", 1) == 1 if old is not None else "format" not in data:
            return data
        raise ValueError("it has no checksum, and is not of the form that was in use before there was one")
    if not is_sealed(data):
        raise ValueError("its checksum differs from what it says")
    if data.get("format") != FORMAT:
        raise OtherVersion(
            f"format {data.get('format')!r} is not {FORMAT}",
            hint="It was written by another version of Forgeline; upgrade, or use another store.",
        )
    return {name: value for name, value in data.items() if name not in ("format", CHECKSUM)}


def checksum_of(data: dict[str, Any]) -> str:
    """sha256 hex of an object without its checksum. `data`: plain JSON."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
