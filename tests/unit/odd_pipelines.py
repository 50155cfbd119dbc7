"""Pipeline files nobody would write on purpose: made of the JSON Schema of pipeline files, or of a good file with faults."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from hypothesis import strategies as st

Schema = dict[str, Any]
Draw = Callable[[st.SearchStrategy[Any]], Any]
DEPTH = 7

WORDS = st.sampled_from([
    "", " ", "a", "base", "rows", "rows.test", "rows.", ".", "ref:", "ref:a/b", "ref:../..", "ref:a or base", "\n", "x\n", "~", "~nobody/x",
    "*", "**", "[", "[z-a]", "[!]", "data/*.txt", "../x", "{", "}", "{a}", "{a.b}", "{0}", "{{", "{% for %}", "(", "(?P<", "\\", "é", "e\u0301", "\u202e", "\U0001f600",
    "\t", "%", "${env:NOPE}", "${HOME}", "column:", "column:a", "08", "010", "1e5", "nan", "-1", "true", "null", "auto", "<<", "a" * 101, "a" * 5000,
    "* * * * *", "FREQ=DAILY", "Europe/Berlin", "2020-01-01", "5m", "1:30", "3/4", "gpt2", "llama", "all", "#", "a/b", "a b", "-",
])  # fmt: skip
NUMBERS = st.sampled_from(
    [
        0,
        1,
        -1,
        2,
        3,
        7,
        0.5,
        -0.5,
        1e-4,
        1e308,
        1e-320,
        2**31,
        2**62,
        -(2**63),
        100,
        1.5,
        float("nan"),
        float("inf"),
        -0.0,
    ]
)
OTHERS = st.sampled_from([None, True, False, [], {}, [[]], [None], {"": None}, {"a": {"b": []}}, [1, "a", {}]])
ANYTHING = WORDS | NUMBERS | OTHERS
RAW = st.sampled_from([
    "08", "010", "0o10", "0x1f", "1_000", "1:30", "2020-01-01", ".nan", ".inf", "-.inf", "1e999", "9" * 30, "9" * 5000, "~", "!!int 08", "!!float x",
    "!!bool maybe", "!!timestamp x", "!!binary x", "!!set {a, b}", "!!omap [a: 1]", "!!python/object/apply:os.system [ls]", "!x 1", "!!str 4",
    "&a [*a]", "*nothing", "[", "{", "\"", "'", "\t", "- x", "a: b: c", "[" * 150 + "]" * 150, "{a: " * 120 + "}" * 120, '"\\0"', '"\\ud800"',
    "|", ">", "? [a]", "{? [a] : 1}", "{<<: 1}", "{<<: [1]}", "{a: 1, a: 2}", "@", "`", "%", "\x07", "\ufeff", "\x85", "---", "...",
])  # fmt: skip
"""Texts that stand for no plain value, or for one that readers of YAML read differently."""


def from_schema(draw: Draw, schema: Schema, definitions: Schema, depth: int = 0) -> Any:
    """A value that a JSON Schema allows, as far as the keywords go that pydantic writes; sometimes one that it does not."""
    if draw(st.integers(0, 60)) == 0 or depth > DEPTH:
        return draw(ANYTHING)
    if "$ref" in schema:
        return from_schema(draw, definitions[schema["$ref"].rpartition("/")[2]], definitions, depth)
    for either in ("anyOf", "oneOf"):
        if either in schema:
            return from_schema(draw, draw(st.sampled_from(schema[either])), definitions, depth)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return draw(st.sampled_from(schema["enum"]))
    match schema.get("type"):
        case "object":
            return _object(draw, schema, definitions, depth)
        case "array":
            items, fewest = schema.get("items", {}), schema.get("minItems", 0)
            count = draw(st.integers(fewest, min(schema.get("maxItems", fewest + 2), fewest + 2)))
            return [from_schema(draw, items, definitions, depth + 1) for _ in range(count)]
        case "string":
            pattern = schema.get("pattern")
            return draw(
                st.from_regex(re.compile(pattern, re.ASCII), fullmatch=True)
                if pattern and draw(st.booleans())
                else WORDS
            )
        case "integer" | "number" as kind:
            low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
            near = st.sampled_from([low, low + 1, low + 2, schema.get("maximum", low + 64)])
            return draw(near if kind == "integer" else near | NUMBERS)
        case "boolean":
            return draw(st.booleans())
        case "null":
            return None
        case _:
            return draw(ANYTHING)


def _object(draw: Draw, schema: Schema, definitions: Schema, depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        if draw(st.integers(0, 3 if depth > 1 else 1)) == 0 or (name in required and draw(st.integers(0, 20))):
            found[name] = from_schema(draw, field, definitions, depth + 1)
    more = schema.get("additionalProperties")
    if more not in (None, False) or not schema.get("properties"):
        for name in draw(st.lists(st.sampled_from(["a", "rows", "base", "default", "A b"]), max_size=2, unique=True)):
            found[name] = from_schema(draw, more if isinstance(more, dict) else {}, definitions, depth + 1)
    return found


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path in plain data but the root."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def with_fault(draw: Draw, good: Any) -> Any:
    """A copy in which one thing is replaced, renamed, left out, doubled or put elsewhere."""
    data = copy.deepcopy(good)
    *path, last = draw(st.sampled_from(list(places(data))))
    parent = data
    for part in path:
        parent = parent[part]
    match draw(st.sampled_from(["replace", "replace", "drop", "rename", "wrap", "add", "borrow"])):
        case "replace":
            parent[last] = draw(ANYTHING)
        case "drop":
            del parent[last]
        case "rename" if isinstance(parent, dict):
            parent[draw(WORDS)] = parent.pop(last)
        case "wrap":
            parent[last] = draw(
                st.sampled_from(
                    [[parent[last]], {"a": parent[last]}, {"choose": [parent[last], 1]}, {"between": [0, parent[last]]}]
                )
            )
        case "borrow":
            *way, end = draw(st.sampled_from(list(places(good))))
            other = good
            for part in way:
                other = other[part]
            parent[last] = copy.deepcopy(other[end])
        case _ if isinstance(parent, dict):
            parent[draw(WORDS)] = draw(ANYTHING)
        case _:
            parent.append(draw(ANYTHING))
    return data


def as_yaml(data: Any) -> str:
    """The text of a pipeline file, by PyYAML where it can write the data."""
    try:
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    except (yaml.YAMLError, ValueError):
        return json.dumps(data)


def with_raw_text(draw: Draw, text: str) -> str:
    """A YAML text with one value, or one stretch of characters, replaced by something that is no plain value."""
    values = [found.span(1) for found in re.finditer(r"(?:: |- )([^\n{\[]+)$", text, re.M)]
    if values and draw(st.integers(0, 3)):
        start, end = draw(st.sampled_from(values))
    else:
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 6)))
    return text[:start] + draw(RAW) + text[end:]
