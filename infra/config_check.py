"""Validation of plain data against a pydantic model, with every fault said in the user's terms.

pydantic knows what is wrong; this module adds where it stands (file:line), which name was probably meant, and which
part of a union was expected.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ValidationError

from infra.errors import Problem
from infra.yaml_source import Document, Path, dotted

M = TypeVar("M", bound=BaseModel)
MISSING = "required field is missing"
MAPPING = re.compile(r"a valid dictionary(?: or instance of \w+)?")
LONGEST_SHOWN = 80
SHOULD_HAVE = re.compile(r"^\w+ should have (at (?:least|most) \d+ \w+).*")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean X?` where a known name is close, else the list of known names (empty text where there is none)."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    return f"known: {', '.join(names)}" if names else ""


def check(model: type[M], data: Any, path: Path, document: Document, problems: list[Problem]) -> M | None:
    """`data` (which stands at `path` of `document`) as a `model`; on faults, adds them to `problems`, returns None."""
    try:
        return model.model_validate({} if data is None else data)
    except ValidationError as error:
        found: dict[Path, list[str]] = {}
        for fault in error.errors(include_url=False):
            where, message = _explain(model, data, fault)
            messages = found.setdefault(where, [])
            if message not in messages:
                messages.append(message)
        for where in _misspelt(found):
            del found[where]
        for where, messages in found.items():
            full = (*path, *where)
            problems.append(Problem(document.place(full), dotted(full), ", or ".join(messages)))
        return None


def _misspelt(found: dict[Path, list[str]]) -> list[Path]:
    """Missing fields that an unknown field beside them already explains: one typo is one fault."""
    meant = {
        (*where[:-1], text.rpartition("did you mean ")[2].rstrip("?"))
        for where, messages in found.items()
        for text in messages
        if text.startswith("unknown field; did you mean")
    }
    return [where for where, messages in found.items() if where in meant and messages == [MISSING]]


def _explain(model: type[BaseModel], data: Any, fault: Any) -> tuple[Path, str]:
    """The fault's path in the data (without pydantic's union tags) and its message."""
    where: list[str | int] = []
    value, expected = data, {model}
    for i, part in enumerate(fault["loc"]):
        last = i == len(fault["loc"]) - 1
        if isinstance(value, dict) and part in value:
            expected, value = _below(expected, str(part)), value[part]
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        elif not (last and fault["type"] == "missing"):
            continue
        where.append(part)
    path = tuple(where)
    if fault["type"] == "extra_forbidden":
        known = {name for cls in _models_at(model, data, path[:-1]) for name in cls.model_fields}
        return path, f"unknown field; {did_you_mean(str(path[-1]), known)}"
    if fault["type"] == "missing":
        return path, MISSING
    shown = f" (got {_short(fault['input'])})" if isinstance(fault["input"], str | int | float | bool | None) else ""
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    message = MAPPING.sub("a mapping of fields", SHOULD_HAVE.sub(r"\1", message))
    return path, (message if fault["type"] == "value_error" else f"expected {message}{shown}")


def _short(value: str | float | bool | None) -> str:
    """The value as it was written, and no more of it than a line holds."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..., {len(text):,} characters"


def _models_at(model: type[BaseModel], data: Any, path: Path) -> set[type[BaseModel]]:
    models = {model}
    for part in path:
        if isinstance(part, str):
            models = _below(models, part)
    return models


def _below(models: set[type[BaseModel]], name: str) -> set[type[BaseModel]]:
    found: set[type[BaseModel]] = set()
    for cls in models:
        if name in cls.model_fields:
            found |= models_in(cls.model_fields[name].annotation)
    return found


def models_in(annotation: Any) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return models_in(typing.get_args(annotation)[0])
    if origin is not None or isinstance(annotation, types.UnionType):
        return {m for arg in typing.get_args(annotation) for m in models_in(arg)}
    return set()
