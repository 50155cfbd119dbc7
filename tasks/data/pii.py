"""Personal data replaced by what it was: <EMAIL>, <PHONE>, <IP>, <CARD>.

Patterns find what has a form; names and addresses have none, and are not found. A card number must pass the check digit
of Luhn (1960), an address of the internet must be one, so that version numbers and ids mostly stay as they are.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from typing import Literal

from pydantic import Field

from tasks.stage import StageParams

Kind = Literal["email", "phone", "ip", "card"]


class Pii(StageParams):
    """Which personal data are masked."""

    mask: list[Kind] = Field(min_length=1, description="Kinds that are replaced by their name in angle brackets.")


EMAIL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._%+-]{0,63})@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
IP = re.compile(r"(?<![\w.:])(?:(?:\d{1,3}\.){3}\d{1,3}|(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4})(?![\w:]|\.\d)")
CARD = re.compile(r"(?<![\d-])\d(?:[ -]?\d){12,18}(?![\d-])")
# +country code, or the forms of North America; plain runs of digits are ids more often than telephones.
PHONE = re.compile(
    r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})(?![\w-]|\.\d)"
)


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of those before it."""
    total = 0
    for i, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + i % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _is_card(found: str) -> bool:
    digits = re.sub(r"\D", "", found)
    return len(set(digits)) > 1 and luhn(digits)


def _is_ip(found: str) -> bool:
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        return False
    # `::` and 0.0.0.0 name no machine; `a::b` is how some languages join names.
    return not address.is_unspecified and (address.version == 4 or found.count(":") >= 3)


KINDS: dict[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "email": (EMAIL, lambda found: True),
    "card": (CARD, _is_card),
    "ip": (IP, _is_ip),
    "phone": (PHONE, lambda found: True),
}
"""In the order they are looked for: a card number could pass for a telephone's."""


def masker(kinds: list[Kind]) -> Callable[[str], tuple[str, Counter[str]]]:
    """text -> (masked text, how many of each kind were masked)."""
    chosen = [(kind, *KINDS[kind]) for kind in KINDS if kind in kinds]

    def mask(text: str) -> tuple[str, Counter[str]]:
        counts: Counter[str] = Counter()
        for kind, pattern, is_one in chosen:

            def replace(match: re.Match[str], kind: str = kind, is_one: Callable[[str], bool] = is_one) -> str:
                if not is_one(match.group()):
                    return match.group()
                counts[kind] += 1
                return f"<{kind.upper()}>"

            text = pattern.sub(replace, text)
        return text, counts

    return mask
