"""YAML with line numbers: the text of a pipeline file as plain data, and where each value stands.

Parsed by PyYAML, built here (`infra/yaml_scalars.py` says what a scalar stands for): a file can make nothing but plain
data. Duplicate keys, recursive anchors, anchors that multiply past `MAX_NODES` and data nested deeper than
`MAX_DEPTH` are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from infra.errors import ConfigError, Problem
from infra.yaml_scalars import TAG, Loader, scalar, unknown_tag

Path = tuple[str | int, ...]
MAX_NODES = 20_000
MAX_DEPTH = 100
OVERRIDE = "--set"
COLLECTIONS = (f"{TAG}map", f"{TAG}seq")
Pairs = dict[str, tuple[yaml.Node, yaml.Node]]


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
        node = Loader(text).get_single_node()
        builder = _Builder(document)
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
        line = text.count("\n", 0, error.position) + 1
        message = f"not valid YAML text: {error.reason} (U+{error.character:04X})"
        raise ConfigError([Problem(f"{name}:{line}", "", message)]) from error
    except RecursionError as error:
        raise ConfigError([Problem(f"{name}:1", "", "nested too deeply to be a pipeline")]) from error


class _Builder:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Problem] = []
        self.open: set[int] = set()
        self.merged: dict[int, Pairs] = {}
        self.count = 0

    def build(self, node: yaml.Node, path: Path) -> Any:
        self.document.places.setdefault(path, self._place(node))
        self.count += 1
        if self.count > MAX_NODES:
            message = f"anchors and aliases expand to more than {MAX_NODES:,} values; write them out or remove them"
            raise ConfigError([Problem(self._place(node), "", message)])
        if len(path) > MAX_DEPTH:
            raise ConfigError([Problem(self._place(node), "", f"nested deeper than {MAX_DEPTH} levels")])
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if node.tag not in COLLECTIONS:
            raise ConfigError([Problem(self._place(node), dotted(path), unknown_tag(node))])
        self._enter(node, path)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            return [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
        finally:
            self.open.discard(id(node))

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        try:
            return scalar(node)
        except ValueError as error:
            self._fault(node, path, str(error))
            return None

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, (key, value) in self._pairs(node, path).items():
            child = (*path, name)
            result[name] = self.build(value, child)
            self.document.places[child] = self._place(key)
        return result

    def _pairs(self, node: yaml.MappingNode, path: Path) -> Pairs:
        """Key -> the nodes of key and value; those of `<<` first, each mapping looked at once, whoever merges it."""
        if id(node) in self.merged:
            return self.merged[id(node)]
        own: Pairs = {}
        given: Pairs = {}
        for key, value in node.value:
            if key.tag == f"{TAG}merge":
                for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    given = self._given(source, path) | given
            elif not isinstance(key, yaml.ScalarNode):
                self._fault(key, path, "a key must be a plain word")
            elif (name := self._name(key, path)) in own:
                line = own[name][0].start_mark.line + 1
                message = f"duplicate key; it already stands in line {line}; keep one of them"
                self._fault(key, (*path, name), message)
            else:
                own[name] = (key, value)
        self.merged[id(node)] = given | own
        return self.merged[id(node)]

    def _name(self, key: yaml.ScalarNode, path: Path) -> str:
        """A key as the text it is written as."""
        written: str = key.value
        found = self._scalar(yaml.ScalarNode(f"{TAG}str", written, key.start_mark), (*path, written))
        return found if isinstance(found, str) else written

    def _given(self, source: yaml.Node, path: Path) -> Pairs:
        """What a mapping named by `<<` holds."""
        if not isinstance(source, yaml.MappingNode):
            self._fault(source, path, "`<<` takes a mapping, or a list of mappings, by alias")
            return {}
        self._enter(source, path)
        try:
            return self._pairs(source, path)
        finally:
            self.open.discard(id(source))

    def _enter(self, node: yaml.Node, path: Path) -> None:
        if id(node) in self.open:
            message = "an alias refers to itself; remove the alias"
            raise ConfigError([Problem(self._place(node), dotted(path), message)])
        self.open.add(id(node))

    def _fault(self, node: yaml.Node, path: Path, message: str) -> None:
        problem = Problem(self._place(node), dotted(path), message)
        if problem not in self.problems:
            self.problems.append(problem)

    def _place(self, node: yaml.Node) -> str:
        return f"{self.document.name}:{node.start_mark.line + 1}"


def parse_scalar(text: str, place: str = OVERRIDE) -> Any:
    """The value a plain YAML text stands for; used by `--set path=value`. Raises ConfigError, with `place`."""
    if not text.strip():
        return ""
    try:
        return parse_yaml(text, OVERRIDE).data
    except ConfigError as error:
        raise ConfigError([Problem(place, "", problem.message) for problem in error.problems]) from error


def dotted(path: Path) -> str:
    """`("stages", "a", "sources", 0)` as `stages.a.sources[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
