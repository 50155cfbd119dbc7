"""Addresses of e-mail in a text, whole, in any script (RFC 6531): jürgen@müller.de, o'brien@example.ie, 张三@例子.中国.

They are looked for from the `@` to both sides. Where no spaces stand between words, as in Chinese, an address in Latin
letters ends where these do. What stands before the `@` of a URL is a user's name, perhaps with a password.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from tasks.data.words import unspaced

AT = re.compile("[@\uff20]")
IN_NAMES = frozenset("._%+-!#$*^`{}~'\u2019")
"""Besides letters, digits and marks. An address may have / = ? & too, and they stand before one far more often."""
USER_OF_URL = re.compile(r"://[^\s/?#]+@(?=[^\s/?#@])")
"""What it finds ends at an `@` that a host follows."""
HOST = re.compile(r"[^\s/?#]+")


def addresses(text: str) -> Iterator[tuple[int, int]]:
    """(begin, end) of each address, one behind another."""
    if "@" not in text and "\uff20" not in text:
        return
    done = 0
    users = {match.end() - 1: match.start() + 3 for match in USER_OF_URL.finditer(text)}
    for match in AT.finditer(text):
        at = match.start()
        if at < done:
            continue
        if at in users:
            host = HOST.match(text, at + 1)
            assert host is not None, "the pattern asks for one"
            begin, end = users[at], host.end()
        else:
            begin, end = _begin_of_name(text, at), _end_of_domain(text, at + 1)
        if begin < at and end > at + 1 and begin >= done:
            yield begin, end
            done = end


def _begin_of_name(text: str, at: int) -> int:
    """Where the name before the @ at `at` begins; `at` where there is none."""
    begin, alone = at, at > 0 and unspaced(text[at - 1])
    while begin and (_of_word(text[begin - 1]) or text[begin - 1] in IN_NAMES):
        if not alone and unspaced(text[begin - 1]):
            break
        begin -= 1
    while begin < at and not (text[begin].isalnum() or text[begin] == "_"):
        begin += 1
    return begin


def _end_of_domain(text: str, begin: int) -> int:
    """Where the domain that begins there ends: labels with dots between them, the last of letters; else `begin`."""
    end, place, labels = begin, begin, 0
    while True:
        first = place
        alone = first < len(text) and unspaced(text[first])
        while place < len(text) and (_of_word(text[place]) or text[place] == "-") and text[place] != "_":
            if not alone and unspaced(text[place]):
                break
            place += 1
        label = text[first:place].rstrip("-")
        if not label or label.startswith("-"):
            return end
        labels += 1
        if labels > 1 and _is_top(label):
            end = first + len(label)
        if text[place : place + 1] != ".":
            return end
        place += 1


def _is_top(label: str) -> bool:
    """Whether a domain may end with it: de, museum, xn--p1ai, \u4e2d\u56fd."""
    letters = sum(character.isalpha() for character in label)
    return label.lower().startswith("xn--") or (letters >= 2 and not any(c.isdigit() or c == "-" for c in label))


def _of_word(character: str) -> bool:
    return character.isalnum() or character == "_" or unicodedata.category(character) in ("Mn", "Mc")
