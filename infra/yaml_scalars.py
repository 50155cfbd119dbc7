"""What a scalar of a pipeline file stands for: YAML 1.2's meaning of plain words, and nothing that two readers read
differently.

`5e-4` is a number, `no` and `on` are words. A number with a leading zero is refused, because YAML 1.1 reads it as octal
and YAML 1.2 as decimal; so are integers that 64 bits do not hold, tags other than those of plain data, and characters
that no file name and no message can hold.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

TAG = "tag:yaml.org,2002:"
NULL = re.compile(r"(?:~|null|Null|NULL|)")
BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)")
INT = re.compile(r"[-+]?[0-9]+")
FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
WORD = re.compile(r"\.(inf|nan)")
LEADING_ZERO = re.compile(r"([-+]?)0+([0-9]+)")
UNUSABLE = re.compile("[\0\ud800-\udfff]")
SURROGATES = re.compile("[\ud800-\udbff][\udc00-\udfff]")
LARGEST = 2**63


class Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 core scalars instead of YAML 1.1's."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


for name, words, first in (
    ("null", NULL, ["~", "n", "N", ""]),
    ("bool", BOOL, list("tTfF")),
    ("int", INT, list("-+0123456789")),
    ("float", FLOAT, list("-+.0123456789")),
    ("merge", re.compile("<<"), ["<"]),
):
    Loader.add_implicit_resolver(TAG + name, re.compile(rf"^(?:{words.pattern})\Z"), first)


def scalar(node: yaml.ScalarNode) -> Any:
    """The value of a scalar. Raises ValueError with what is wrong with it, and what to write."""
    text: str = node.value
    if SURROGATES.search(text):  # how JSON, which is YAML, writes a character beyond the first 65,536
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    if found := UNUSABLE.search(text):
        raise ValueError(f"holds the character U+{ord(found[0]):04X}, which no name and no text can hold; take it out")
    match node.tag.removeprefix(TAG):
        case "str" | "merge":
            return text
        case "null" if NULL.fullmatch(text):
            return None
        case "bool" if BOOL.fullmatch(text):
            return text.lower() == "true"
        case "int" if INT.fullmatch(text):
            return _integer(text)
        case "float" if INT.fullmatch(text):
            return float(_integer(text))
        case "float" if FLOAT.fullmatch(text):
            return float(WORD.sub(r"\1", text.lower()))
        case "null" | "bool" | "int" | "float" as kind:
            raise ValueError(f"is tagged !!{kind}, but {text[:40]!r} is none; leave the tag out")
        case _:
            raise ValueError(f"{unknown_tag(node)}; put a text that begins with ! in quotes")


def unknown_tag(node: yaml.Node) -> str:
    """What is wrong with a tag of the file."""
    tag = str(node.tag)
    short = f"!!{tag.removeprefix(TAG)}" if tag.startswith(TAG) else tag
    return f"unknown tag {short[:80]}; a pipeline is plain data"


def _integer(text: str) -> int:
    if zero := LEADING_ZERO.fullmatch(text):
        plain = zero[1].replace("+", "") + zero[2].lstrip("0")
        what = f"{text[:40]} begins with a zero, which some readers of YAML take for an octal number"
        raise ValueError(f"{what}; write {(plain or '0')[:40]}, or put it in quotes if it is a name")
    if len(text) > 20 or not -LARGEST <= int(text) < LARGEST:
        raise ValueError(f"{text[:40]} is larger than 64 bits hold; put it in quotes if it is a name")
    return int(text)
