"""Tasks made of Python's standard library, into `data/python/`: real functions and docstrings, labels that `ast` has.

    python configs/python_tasks.py [--to FOLDER]

questions.jsonl   a function, a question on it (what is the default of a parameter, what does it return) and its answer
                  as SQuAD spells it; none where the parameter has no default, the function returns nothing
search.jsonl      the first sentence of a docstring, and the function it describes, without the docstring
talks.jsonl       "What does json.dumps do?", and that sentence, as a conversation

The texts are people's; the questions are templates and the answers are read off the syntax tree. `file` is what rows
have in common with all others of their source file: split by it. One Python version makes the same bytes everywhere.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.data.reading.functions import Function, python_functions

SKIPPED = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "lib2to3", "pydoc_data"}
CHARACTERS = range(64, 800)
"""Of a function that is asked about."""
Row = dict[str, Any]


def functions(library: Path) -> Iterator[tuple[str, str, str]]:
    """(file, qualified name, source) of each function, in sorted order of files."""
    for path in sorted(library.rglob("*.py")):
        place = path.relative_to(library)
        if not SKIPPED.intersection(place.parts):
            try:
                found = python_functions(path.read_text(encoding="utf-8"))
            except (SyntaxError, ValueError):
                continue
            yield from ((place.as_posix(), name, text) for name, text in found)


def parsed(text: str) -> Function | None:
    """The function alone; None where it is none by itself (a string that spans lines was dedented with it)."""
    try:
        (node,) = ast.parse(text).body
    except (SyntaxError, ValueError):
        return None
    return node if isinstance(node, Function) else None


def questions(text: str) -> list[tuple[str, ast.expr | None]]:
    """What can be asked of a function, and the expression that answers; None: nothing does."""
    node = parsed(text)
    if node is None:
        return []
    positional = [*node.args.posonlyargs, *node.args.args]
    defaults = [None] * (len(positional) - len(node.args.defaults)) + list(node.args.defaults)
    pairs = [*zip(positional, defaults, strict=True), *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
    asked = [(f"What is the default of {a.arg}?", value) for a, value in pairs if a.arg not in ("self", "cls")]
    if not any(value for _, value in asked):
        asked = []  # most functions: nothing but unanswerable questions
    returned = [one.value for one in ast.walk(node) if isinstance(one, ast.Return) and one.value is not None]
    if len(returned) < 2:  # of several none is the answer
        asked.append(("What does it return?", returned[0] if returned else None))
    return asked


def spot(text: str, node: ast.expr) -> tuple[str, int]:
    """The source of an expression, and at which character of the text it begins."""
    lines = text.split("\n")
    before = lines[node.lineno - 1].encode()[: node.col_offset].decode()  # ast counts bytes
    answer = ast.get_source_segment(text, node)
    assert answer is not None
    return answer, sum(len(line) + 1 for line in lines[: node.lineno - 1]) + len(before)


def described(text: str) -> tuple[str, str] | None:
    """(first sentence of the docstring, the function without the docstring); None where there is none."""
    node = parsed(text)
    summary = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split()) if node else ""
    sentence = re.split(r"(?<=[.!?])\s", summary)[0]
    if node is None or len(node.body) < 2 or len(sentence.split()) < 3:
        return None
    first, last = node.body[0].lineno, node.body[0].end_lineno
    lines = text.split("\n")
    return sentence, "\n".join([*lines[: first - 1], *lines[last:]])


def rows(library: Path) -> dict[str, list[Row]]:
    """The rows of each file."""
    found: dict[str, list[Row]] = {"questions": [], "search": [], "talks": []}
    for file, name, text in functions(library):
        if len(text) in CHARACTERS:
            for question, node in questions(text):
                answer = [] if node is None else [spot(text, node)]
                answers = {"text": [a for a, _ in answer], "answer_start": [start for _, start in answer]}
                found["questions"].append({"text": text, "question": question, "answers": answers, "file": file})
        if about := described(text):
            sentence, rest = about
            found["search"].append({"text": sentence, "function": rest, "file": file})
            module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            asked = {"role": "user", "content": f"What does {module}.{name} do?"}
            messages = [asked, {"role": "assistant", "content": sentence}]
            found["talks"].append({"messages": messages, "file": file})
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--to", type=Path, default=Path(__file__).parents[1] / "data/python", help="folder")
    to = parser.parse_args(arguments).to
    to.mkdir(parents=True, exist_ok=True)
    for name, made in rows(Path(sysconfig.get_path("stdlib"))).items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
        (to / f"{name}.jsonl").write_text(text, encoding="utf-8")
        sys.stdout.write(f"{to / name}.jsonl: {len(made):,} rows\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
