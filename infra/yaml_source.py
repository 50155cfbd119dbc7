"""YAML with line numbers: the text of a pipeline file as plain data, and where each value stands.

Read with YAML 1.2's meaning of plain scalars (`5e-4` is a number, `no` and `on` are words), through PyYAML's safe
constructors only. Duplicate keys, recursive anchors and anchors that multiply past `MAX_NODES` are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from infra.errors import ConfigError, Problem

Path = tuple[str | int, ...]
MAX_NODES = 20_000
OVERRIDE = "--set"
COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 core scalars instead of YAML 1.1's."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])


@dataclass
class Document:
    """Plain data and, for every path in it, the place (`file:line`, or the override) it came from."""

    name: str
    data: Any
    text: str
    places: dict[Path, str] = field(default_factory=dict)

    def place(self, path: Path) -> str:
        """Where the value at `path`, or its nearest known parent, stands."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return f"{self.name}:1"


def parse_yaml(text: str, name: str) -> Document:
    """Parse `text`; `name` is the file name shown in errors. Raises ConfigError with every structural fault."""
    document = Document(name=name, data=None, text=text)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        builder = _Builder(loader, document)
        document.data = None if node is None else builder.build(node, ())
        if document.data is None and name != OVERRIDE:
            what = "the file is empty; a pipeline needs at least `name` and `stages`"
            raise ConfigError([Problem(f"{name}:1", "", what)])
        if builder.problems:
            raise ConfigError(builder.problems)
        return document
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError([Problem(f"{name}:{line}", "", f"not valid YAML: {what}")]) from error
    except yaml.reader.ReaderError as error:
        raise ConfigError([Problem(f"{name}:1", "", f"not valid YAML text: {error.reason}")]) from error
    except RecursionError as error:
        raise ConfigError([Problem(f"{name}:1", "", "nested too deeply to be a pipeline")]) from error


class _Builder:
    def __init__(self, loader: _Loader, document: Document) -> None:
        self.loader, self.document = loader, document
        self.problems: list[Problem] = []
        self.open: set[int] = set()
        self.count = 0

    def build(self, node: yaml.Node, path: Path) -> Any:
        place = f"{self.document.name}:{node.start_mark.line + 1}"
        self.document.places.setdefault(path, place)
        self.count += 1
        if self.count > MAX_NODES:
            message = f"anchors and aliases expand to more than {MAX_NODES:,} values; write them out or remove them"
            raise ConfigError([Problem(place, "", message)])
        if id(node) in self.open:
            raise ConfigError([Problem(place, dotted(path), "an alias refers to itself; remove the alias")])
        if isinstance(node, yaml.CollectionNode) and node.tag not in COLLECTIONS:
            raise ConfigError([Problem(place, dotted(path), f"unknown tag {node.tag}; a pipeline is plain data")])
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
            return self.loader.construct_object(node, deep=True)
        finally:
            self.open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        first_lines: dict[str, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if isinstance(key_node, yaml.ScalarNode) and key_node.value != "<<":
                if key_node.value in first_lines:
                    message = (
                        f"duplicate key; it already stands in line {first_lines[key_node.value]}; keep one of them"
                    )
                    where = f"{self.document.name}:{line}"
                    self.problems.append(Problem(where, dotted((*path, key_node.value)), message))
                first_lines.setdefault(key_node.value, line)
        self.loader.flatten_mapping(node)
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                where = f"{self.document.name}:{key_node.start_mark.line + 1}"
                self.problems.append(Problem(where, dotted(path), "a key must be a plain word"))
                continue
            child = (*path, key_node.value)
            result[key_node.value] = self.build(value_node, child)
            self.document.places[child] = f"{self.document.name}:{key_node.start_mark.line + 1}"
        return result


def parse_scalar(text: str) -> Any:
    """The value a plain YAML text stands for; used by `--set path=value`. Raises ConfigError as `parse_yaml` does."""
    return parse_yaml(text, OVERRIDE).data if text.strip() else ""


def dotted(path: Path) -> str:
    """`("stages", "a", "sources", 0)` as `stages.a.sources[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
