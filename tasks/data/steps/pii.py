"""Personal data replaced by what it was: <EMAIL>, <PHONE>, <IP>, <CARD>.

Patterns find what has a form; names and postal addresses have none, and are not found. A card number must be one that
an issuer gives out (`tasks/data/steps/card_numbers.py`), an address of the internet must be one, so that version
numbers and ids mostly stay as they are.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal

from pydantic import Field

from tasks.data.steps.card_numbers import cards
from tasks.data.steps.email_addresses import addresses
from tasks.stage import StageParams

Kind = Literal["email", "phone", "ip", "card"]


class Pii(StageParams):
    """Which personal data are masked."""

    mask: list[Kind] = Field(min_length=1, description="Kinds that are replaced by their name in angle brackets.")


QUAD, HEX = r"\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)", "[0-9A-Fa-f]"
IP = re.compile(
    rf"(?<![\w.])(?=[0-9A-Fa-f:]+[.:])(?:{QUAD}|(?<!:)(?:{HEX}{{0,4}}:){{2,7}}(?:{QUAD}|{HEX}{{0,4}}(?![\w:]|\.\d)))"
)
NETWORK = re.compile(r"(?=[a-f]*\d)(?:[23][0-9a-f]{3}|f[cde][0-9a-f]{2}):", re.IGNORECASE)
"""How the address of a machine begins; `a::b` is how some languages join names."""
BETWEEN = r"(?: ?[-./] ?|[ \u00a0\u202f])?"
# + or 00 and a country's code, or the forms of North America; plain runs of digits are ids more often than telephones.
PHONE = re.compile(
    rf"(?<![\w.+-])(?:\+[1-9](?:{BETWEEN}\(?\d\)?){{6,15}}"
    rf"|(?<!\d[ -])00[1-9]\d{{0,2}}[ /-](?:{BETWEEN}\(?\d\)?){{5,13}}"
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})(?![\w-]|\.\d)"
)


def phones(text: str) -> Iterator[tuple[int, int]]:
    """(begin, end) of each telephone number."""
    for match in PHONE.finditer(text):
        yield match.span()


def ips(text: str) -> Iterator[tuple[int, int]]:
    """(begin, end) of each address of the internet."""
    for match in IP.finditer(text):
        if _is_ip(match.group()):
            yield match.span()


def _is_ip(found: str) -> bool:
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        return False
    # `::` and 0.0.0.0 name no machine.
    return not address.is_unspecified and (
        address.version == 4 or found.count(":") >= 3 or "." in found or NETWORK.match(found) is not None
    )


KINDS: dict[str, Callable[[str], Iterator[tuple[int, int]]]] = {
    "email": addresses,
    "card": cards,
    "ip": ips,
    "phone": phones,
}
"""In the order they are looked for: a card number could pass for a telephone's."""


def masker(kinds: list[Kind]) -> Callable[[str], tuple[str, Counter[str]]]:
    """text -> (masked text, how many of each kind were masked)."""
    chosen = [(kind, find) for kind, find in KINDS.items() if kind in kinds]

    def mask(text: str) -> tuple[str, Counter[str]]:
        counts: Counter[str] = Counter()
        for kind, find in chosen:
            kept, done = [], 0
            for begin, end in find(text):
                kept += [text[done:begin], f"<{kind.upper()}>"]
                done = end
                counts[kind] += 1
            text = "".join([*kept, text[done:]]) if kept else text
        return text, counts

    return mask
