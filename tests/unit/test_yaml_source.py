"""YAML as users write it: numbers are numbers, words are words, and nothing in a file can hurt the reader."""

import math
import re
from typing import Any

import pytest

from infra.errors import ConfigError
from infra.yaml_source import dotted, parse_scalar, parse_yaml


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "p.yaml")
    return [str(p) for p in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [("5e-4", 5e-4), ("1.0e-4", 1e-4), ("12", 12), ("-3", -3), (".5", 0.5), ("no", "no"), ("on", "on"), ("true", True),
     ("null", None), ("1_000", "1_000"), ("0x1f", "0x1f"), ("12:30:00", "12:30:00"), ("2026-01-01", "2026-01-01"),
     ("", "")],
)  # fmt: skip
def test_plain_scalars_mean_what_yaml_1_2_says(text: str, value: Any) -> None:
    found = parse_scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_nan_is_read_as_a_number_not_a_word() -> None:
    assert math.isnan(parse_scalar(".nan"))


def test_places_of_values() -> None:
    document = parse_yaml("a: 1\nb:\n  - x\n  - y: 2\n", "p.yaml")
    assert document.data == {"a": 1, "b": ["x", {"y": 2}]}
    assert document.place(("b", 1, "y")) == "p.yaml:4"
    assert document.place(("b", 1, "y", "unknown")) == "p.yaml:4"
    assert dotted(("b", 1, "y")) == "b[1].y"


def test_every_duplicate_key_is_reported_with_both_lines() -> None:
    found = problems("a: 1\nb: {c: 1, c: 2}\na: 3\n")
    assert len(found) == 2
    assert any("p.yaml:3: a: duplicate key; it already stands in line 1" in p for p in found)
    assert any("p.yaml:2: b.c: duplicate key" in p for p in found)


def test_anchor_bomb_is_refused_quickly() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert "expand to more than" in problems("\n".join(lines))[0]


def test_alias_to_itself_is_refused() -> None:
    assert "refers to itself" in problems("a: &a [1, *a]\n")[0]


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_empty_file(text: str) -> None:
    assert "the file is empty" in problems(text)[0]


@pytest.mark.parametrize(
    "text", ["a: [1\n", "a: b: c\n", "\tx: 1\n", "!!python/object/apply:os.system [echo]\n", "a: \x00\n"]
)
def test_broken_or_hostile_text_is_an_error_with_a_line(text: str) -> None:
    assert re.match(r"p\.yaml:[12]: ", problems(text)[0])


def test_merge_keys_and_anchors_work() -> None:
    assert parse_yaml("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\n", "p").data["y"] == {"a": 1, "b": 3}
