"""Labels, groups and ids in one spelling, whatever format and type they came in.

A class that is `1` in one file and `1.0` in the next is one class, and a user whose id is a number here and a string
there is one user, who must not be torn over two splits. So all of them go through `plain` before they are compared:

    1, 1.0, "1", "1.0", Decimal("1.00")       -> "1"      an integral number is an integer, also where a csv spells it
    0.5, Decimal("0.50")                      -> "0.5"
    True                                      -> "true"   a string "True" stays, and is warned of beside "true"
    None, NaN, NaT, "", "  "                  -> None     missing
    "cafe\\u0301", "caf\\u00e9"                 -> "café"   Unicode's normal form C
    dates, times, timestamps                  -> ISO 8601, with nanoseconds where there are some
    UUIDs, also as 16 bytes                   -> "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"
    bytes that are text                       -> the text
    lists, mappings, other bytes, infinity    -> ValueError
"""

from __future__ import annotations

import re
import unicodedata
import uuid
from collections.abc import Iterable, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

INTEGRAL = re.compile(r"-?(?:0|[1-9][0-9]{0,17})\.0+", re.ASCII)
"""How a number column of integers is spelled by a program that has it as floats; `007.0` is no number but a name."""
NAMES = {"list": "list", "dict": "mapping", "timedelta": "duration"}


def plain(value: Any) -> str | None:
    """The normal form of a label, group or id; None: it is missing. Raises ValueError saying what the value is."""
    if isinstance(value, str):
        return plain_text(value)
    if value is None or value != value:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float | Decimal):
        return _number(Decimal(repr(value)) if isinstance(value, float) else value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return _of_bytes(value)
    if isinstance(value, uuid.UUID):
        return str(value)
    kind = type(value).__name__
    raise ValueError(f"a {NAMES.get(kind.lower(), kind)}")


def plain_text(text: str) -> str | None:
    """`plain` of a string."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    elif text.endswith("0") and INTEGRAL.fullmatch(text):
        return str(int(text.partition(".")[0]))
    return text if text.strip() else None


def in_text(value: Any) -> str | None:
    """A value as it stands in a text made of columns: numbers and lists as they are, the rest as `plain` spells it."""
    if value is None or value != value:
        return None
    return plain(value) or "" if isinstance(value, datetime | date | time | bytes | uuid.UUID) else str(value)


def _number(number: Decimal) -> str:
    if number.is_infinite():
        raise ValueError("an infinite number")
    text = f"{number:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def _of_bytes(value: bytes) -> str | None:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = "\0"
    if text.isprintable():
        return plain_text(text)
    if len(value) == 16:
        return str(uuid.UUID(bytes=value))
    raise ValueError(f"{len(value)} bytes that are no text")


def plain_names(names: Sequence[str]) -> list[str]:
    """The classes a model knows, spelled as data have them now; as they are where two of them would become one."""
    found = [plain_text(name) or name for name in names]
    return found if len(set(found)) == len(found) else list(names)


def alike(names: Iterable[str]) -> list[list[str]]:
    """Names that differ in spelling alone (case, spaces, Unicode's compatibility forms), in groups of two or more."""
    found: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        key = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        found.setdefault(key, []).append(name)
    return [group for group in found.values() if len(group) > 1]
