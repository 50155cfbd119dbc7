"""Every function and method of a Python file, as source text.

Functions nested in another function are part of their parent's text and are not examples of their own: else the same
lines would be counted twice.
"""

from __future__ import annotations

import ast
import warnings
from collections import Counter
from collections.abc import Iterator

Function = ast.FunctionDef | ast.AsyncFunctionDef


def python_functions(source: str) -> list[tuple[str, str]]:
    """(qualified name, dedented source with decorators) in file order; a repeated name gets `#2`, `#3` ...

    Raises SyntaxError, or ValueError on NUL bytes, as `ast.parse` does.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    # ast counts lines by \n alone (after universal newlines); str.splitlines also breaks at form feeds.
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    seen: Counter[str] = Counter()
    result = []
    for name, node in _functions(tree, ""):
        seen[name] += 1
        unique = name if seen[name] == 1 else f"{name}#{seen[name]}"
        result.append((unique, _text(node, lines)))
    return result


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield prefix + child.name, child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _functions(child, prefix)


def _text(node: Function, lines: list[str]) -> str:
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    indent = " " * node.col_offset
    block = lines[first - 1 : node.end_lineno]
    if not block[0].startswith(indent):
        indent = block[0][: len(block[0]) - len(block[0].lstrip())]
    return "\n".join(line.removeprefix(indent) for line in block)
