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


@pytest.mark.parametrize(
    ("text", "fault"),
    [("08", "write 8"), ("010", "write 10"), ("-007", "write -7"), ("+00", "write 0"), ("!!int 08", "write 8"),
     ("!!int x", "is tagged !!int"), ("!!float x", "is tagged !!float"), ("!!bool maybe", "is tagged !!bool"),
     ("!!null x", "is tagged !!null"), ("!!timestamp x", "unknown tag !!timestamp"), ("!!binary x", "unknown tag !!binary"),
     ("!!set {a, b}", "unknown tag !!set"), ("!!omap [a: 1]", "unknown tag !!omap"), ("!mine 4", "unknown tag !mine"),
     ("!!python/name:os.system x", "unknown tag !!python/name:os.system"), ("9" * 5000, "larger than 64 bits hold"),
     (str(2**63), "larger than 64 bits hold"), ('"a\\0b"', "U+0000"), ('"\\ud800"', "U+D800"),
     ("[" * 150 + "]" * 150, "nested deeper than 100"), ("[" * 3000 + "]" * 3000, "nested too deeply"),
     ("{<<: 1}", "`<<` takes a mapping"), ("{<<: [1]}", "`<<` takes a mapping"), ("&a {<<: *a}", "refers to itself"),
     ("{? [a] : 1}", "a key must be a plain word"), ('{"a\\0": 1}', "U+0000")],
)  # fmt: skip
def test_what_two_readers_read_differently_or_nobody_can_use_is_refused(text: str, fault: str) -> None:
    found = problems(f"first: 1\na: {text}\n")
    assert any(fault in problem for problem in found)
    assert re.match(r"p\.yaml:[12]: ", found[0])


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("-0", 0), ("0.5", 0.5), ("01e-3", 0.001), ('"08"', "08"), ("!!str 08", "08"), ("!!int 8", 8),
     ("!!float 8", 8.0), ("!!bool True", True), ("!!null ~", None), (str(-(2**63)), -(2**63)), ("-.inf", -math.inf),
     (".INF", math.inf), ('"\\ud83d\\ude00"', "\U0001f600"), ('{"\\ud83d\\ude00": 1}', {"\U0001f600": 1}), ("[" * 90 + "]" * 90, None)],
)  # fmt: skip
def test_what_is_clear_is_taken(text: str, value: Any) -> None:
    found = parse_scalar(text)
    assert text.startswith("[") or (found == value and type(found) is type(value))


def test_merges_that_multiply_are_read_once_each() -> None:
    """Nine to the power of eleven pairs, if each mapping were written out."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}], k{i}: {i}}}" for i in range(1, 12)]
    data = parse_yaml("\n".join([*lines, "<<: *a11", "k3: own"]), "p.yaml").data
    assert data["x"] == 1 and data["k11"] == 11 and data["k3"] == "own" and data["a11"]["k1"] == 1


def test_of_two_merged_mappings_the_first_holds() -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {x: 2, z: 2}\nc: {<<: [*a, *b], z: 3}\n"
    assert parse_yaml(text, "p").data["c"] == {"x": 1, "y": 1, "z": 3}
