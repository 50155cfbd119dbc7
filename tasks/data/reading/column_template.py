"""The grammar of `template:`: plain text with `{column}` in it, `{{` and `}}` for braces.

Nothing else of Python's format language. A pipeline file may have been written by somebody else: `{a.b}` and `{a[0]}`
would read Python objects, and the width in `{a:>40000000}` would fill the memory with every row.
"""

from __future__ import annotations

import re

PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[^{}]+|[{}]")


def template_parts(template: str) -> list[tuple[str, str | None]]:
    """The template in pieces: (text, None), or ("", the column whose value goes there).

    Raises ValueError that says which piece is wrong, and where.
    """
    found: list[tuple[str, str | None]] = []
    for piece in PIECE.finditer(template):
        text, column = piece[0], piece[1]
        if column is not None:
            if not column.isidentifier():
                raise ValueError(_refused(text, column, piece.start()))
            found.append(("", column))
        elif text in ("{", "}"):
            raise ValueError(
                f"`template`: a single {text} at character {piece.start() + 1}; write {text * 2} for {text}"
            )
        else:
            found.append(({"{{": "{", "}}": "}"}.get(text, text), None))
    if not any(column for _, column in found):
        raise ValueError("`template` names columns as {column}, and this one names none; write {{ for {")
    return found


def _refused(piece: str, inner: str, place: int) -> str:
    mark = next((char for char in inner if char in ":!.["), "")
    what = {
        ":": "with a width or a format",
        "!": "with a conversion",
        ".": "that looks into a value",
        "[": "that looks into a value",
    }.get(mark, "that is no column's name")
    shown = piece if len(piece) <= 60 else f"{piece[:60]}..."
    return (
        f"`template` names columns as {{column}}, letters, digits and _ only; {shown} at character {place + 1} is one "
        f"{what}; write {{{{ for {{"
    )
