"""Other people's text inside Markdown: labels, file names, licences and metrics are shown as they are, never as markup.

A class may be called `a|b`, `<script>...` or hold lines that look like a section; in a model card or in the Prefect UI
it stays one piece of text in its line. CommonMark with tables and bare links (GFM) is what pages are read as.
"""

from __future__ import annotations

import re

from infra.terminal import one_line

SPECIAL = re.compile(
    r"""[\\`*\[\]|~$]           # code, emphasis, links and images, table cells, strike-through, formulas
    | (?<![^\W_])_ | _(?![^\W_])  # emphasis; the one of `f1_macro` is none
    | (?<=\w):(?=//) | (?<=\bwww)\.  # what readers make a link of by themselves
    """,
    re.VERBOSE,
)
HTML = {"<": "&lt;", ">": "&gt;"}
ENTITY = re.compile(r"&(?=#|\w+;)")
BLOCK = re.compile(r"^(?=#|[+-](?: |$)|[-=]+(?: |$))")
NUMBER = re.compile(r"^(\d+)(?=[.)](?: |$))")


def plain_text(value: object) -> str:
    """`value` as text of one line that no reader of Markdown takes for markup; also for the cell of a table."""
    text = ENTITY.sub("&amp;", one_line(str(value)))
    text = SPECIAL.sub(lambda found: f"\\{found[0]}", text)
    text = "".join(HTML.get(char, char) for char in text)
    return NUMBER.sub(r"\1\\", BLOCK.sub(r"\\", text))


def code(value: object) -> str:
    """`value` as a code span of one line."""
    text = one_line(str(value)) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"
