"""What is put into a pipeline file from outside before it is checked: `--set` overrides and `${env:NAME}`.

`${env:NAME}` and `${env:NAME:-default}` are replaced in `store`, `tracking` and `execution` only: what the environment
holds may change how a result is made, never what it is. `--set` may change anything, and is kept in the run's record.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import Any

from infra.config_check import did_you_mean
from infra.errors import ConfigError, Problem
from infra.yaml_source import Document, dotted, parse_scalar
from tasks.pipeline.node import AFTER

INDEX = re.compile(r"(?:\[[0-9]+\])+$")
NUMBER = re.compile(r"[0-9]+")
ENV = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def apply_override(document: Document, override: str, problems: list[Problem]) -> None:
    """Apply one `path=value`. Below `stages.NAME` the kind may be left out, because a stage has just one."""
    place = f"--set {override}"
    written, sep, value = override.partition("=")
    try:
        parts = path_of(written)
    except ValueError:
        parts = []
    if not sep or not parts:
        problems.append(Problem(place, "", "expected PATH=VALUE, such as stages.base.learning_rate=1e-4"))
        return
    if parts[0] == "stages" and len(parts) > 2:
        body = document.data.get("stages", {}).get(parts[1]) if isinstance(document.data.get("stages"), dict) else None
        kinds = [key for key in body if key != AFTER] if isinstance(body, dict) else []
        if len(kinds) == 1 and parts[2] not in (*kinds, AFTER):
            parts.insert(2, kinds[0])
    target: Any = document.data
    for i in range(len(parts)):
        if fault := _no_place(target, parts, i):
            problems.append(Problem(place, dotted(tuple(parts[: i + 1])), fault))
            return
        if i < len(parts) - 1:
            if target[parts[i]] is None:
                target[parts[i]] = {}
            target = target[parts[i]]
    try:
        target[parts[-1]] = parse_scalar(value, place)
        document.places[tuple(parts)] = place
    except ConfigError as error:
        problems += [replace(problem, field=dotted(tuple(parts))) for problem in error.problems]


def path_of(written: str) -> list[str | int]:
    """`stages.scores.require[0].min` as its parts. Raises ValueError where it is none."""
    parts: list[str | int] = []
    for word in written.strip().split("."):
        name = INDEX.sub("", word)
        if not name:
            raise ValueError(written)
        parts += [name, *(int(index) for index in NUMBER.findall(word.removeprefix(name)))]
    return parts


def _no_place(target: Any, parts: list[str | int], i: int) -> str:
    """Why part `i` cannot be found in `target`; empty where it can: then a new field has been made."""
    part = parts[i]
    if isinstance(target, list):
        if not NUMBER.fullmatch(str(part)) or int(part) >= len(target):
            return f"no such item; the list has {len(target)}, and [0] is the first"
        parts[i] = int(part)
    elif not isinstance(target, dict):
        return f"{dotted(tuple(parts[:i]))} is a single value and has no fields to set"
    elif isinstance(part, int):
        return f"{dotted(tuple(parts[:i]))} is no list"
    elif parts[0] == "stages" and i == 1 and part not in target:
        return f"no such stage; {did_you_mean(part, target)}"
    else:
        target.setdefault(part, None)
    return ""


class FromEnvironment(str):
    """A text that has a variable's value in it. Messages show what was written, because the value may be a secret."""

    written: str

    def __repr__(self) -> str:
        return repr(self.written)


def with_environment(value: Any, path: tuple[str | int, ...], document: Document, problems: list[Problem]) -> Any:
    """`value`, which stands at `path`, with every variable replaced; one that is not set becomes a problem."""
    if isinstance(value, dict):
        return {k: with_environment(v, (*path, k), document, problems) for k, v in value.items()}
    if isinstance(value, list):
        return [with_environment(v, (*path, i), document, problems) for i, v in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    for match in ENV.finditer(value):
        if match[1] not in os.environ and match[2] is None:
            message = f"environment variable {match[1]} is not set; set it, or write ${{env:{match[1]}:-default}}"
            problems.append(Problem(document.place(path), dotted(path), message))
    text = ENV.sub(lambda m: os.environ.get(m[1]) or m[2] or "", value)
    try:
        found = parse_scalar(text) if text != value and path[0] == "execution" else text
    except ConfigError:  # whose words would show the value
        message = f"what {value} stands for is no YAML value: a bracket that is not closed, a number such as 08, a tag"
        problems.append(Problem(document.place(path), dotted(path), message))
        return value
    if isinstance(found, str):
        found = FromEnvironment(found)
        found.written = value
    return found


def refuse_environment(value: Any, path: tuple[str | int, ...], document: Document, problems: list[Problem]) -> None:
    """A problem for every variable in `value`, which is identity."""
    if isinstance(value, dict):
        for k, v in value.items():
            refuse_environment(v, (*path, k), document, problems)
    elif isinstance(value, list):
        for i, v in enumerate(value):
            refuse_environment(v, (*path, i), document, problems)
    elif isinstance(value, str) and "${env:" in value:
        message = "${env:...} is allowed only in store, tracking and execution; use --set to vary an identity field"
        problems.append(Problem(document.place(path), dotted(path), message))
