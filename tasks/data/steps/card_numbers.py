"""Numbers of payment cards in a text: the length and first digits of an issuer, the usual groups, and a check digit.

The check digit of Luhn (1960) alone lets a tenth of all telephone and account numbers through.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

SPACE = "[ \u00a0\u202f-]"
NUMBER = re.compile(
    rf"\d(?<![\w.+-]\d)\d{{3}}(?:(?:{SPACE}\d{{4}}){{2,3}}{SPACE}\d{{1,4}}|{SPACE}\d{{6}}{SPACE}\d{{4,5}}"
    rf"|\d\d{SPACE}\d{{10,13}}|\d{{4}}{SPACE}\d{{8}}|(?:{SPACE}\d{{3}}){{3}}|\d{{9,15}})(?![\w-]|\.\d)"
)
"""What may not stand before it is looked for behind its first digit, which the engine finds fast."""
DIALLED = re.compile(r"\+[\d ()./\u00a0-]*$")
"""Before a number: it is the rest of one with a country's code."""
ISSUERS = (
    ((4, 4), (13, 16, 19)),  # Visa
    ((51, 55), (16,)), ((2221, 2720), (16,)),  # Mastercard
    ((34, 34), (15,)), ((37, 37), (15,)),  # American Express
    ((300, 305), (14, 16, 17, 18, 19)), ((3095, 3095), (14, 16)), ((36, 36), (14, 16, 17, 18, 19)),
    ((38, 39), (14, 16, 17, 18, 19)),  # Diners
    ((6011, 6011), (16, 17, 18, 19)), ((644, 659), (16, 17, 18, 19)),  # Discover
    ((3528, 3589), (16, 17, 18, 19)),  # JCB
    ((62, 62), (16, 17, 18, 19)), ((81, 82), (16, 17, 18, 19)),  # UnionPay, RuPay
    ((500, 509), (13, 14, 15, 16, 17, 18, 19)), ((56, 58), (13, 14, 15, 16, 17, 18, 19)),
    ((60, 60), (16,)), ((63, 63), (16, 18, 19)), ((67, 67), (13, 14, 15, 16, 17, 18, 19)),  # Maestro, Verve, Elo
    ((2200, 2204), (16, 17, 18, 19)), ((8600, 8600), (16,)), ((9792, 9792), (16,)), ((9860, 9860), (16,)),
)  # fmt: skip
"""First digits (from, to) and lengths of the numbers of issuers; the last line: Mir, Uzcard, Troy, Humo."""


def cards(text: str) -> Iterator[tuple[int, int]]:
    """(begin, end) of each number."""
    for match in NUMBER.finditer(text):
        if is_card(match.group()) and not DIALLED.search(text, max(0, match.start() - 12), match.start()):
            yield match.span()


def is_card(found: str) -> bool:
    digits = re.sub(r"\D", "", found)
    issued = any(
        low <= int(digits[: len(str(low))]) <= high for (low, high), lengths in ISSUERS if len(digits) in lengths
    )
    return issued and len(set(digits)) > 1 and luhn(digits)


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of those before it."""
    total = 0
    for i, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + i % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0
