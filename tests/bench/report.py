"""The stored result and the page made from it. A row measured again replaces itself; the others stay."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench.result import Figure, Measurement, Row

QUIET = 0.05


def entry(row: Row, found: Measurement, environment: dict[str, str], command: str) -> dict[str, Any]:
    """A row as the JSON file holds it."""
    return {
        "row": row.name,
        "what": row.what,
        "bar": row.bar,
        "at_least": row.at_least,
        "unit": row.unit,
        "met": row.verdict(found),
        **asdict(found),
        "environment": environment,
        "command": command,
    }


def store(path: Path, entries: Sequence[dict[str, Any]], order: Sequence[str]) -> list[dict[str, Any]]:
    """Merge `entries` into the JSON file, in the order of the rows; returns all that it holds now."""
    known = {e["row"]: e for e in json.loads(path.read_text(encoding="utf-8"))} if path.exists() else {}
    known |= {e["row"]: e for e in entries}
    kept = [known[name] for name in order if name in known]
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return kept


def page(head: str, entries: Sequence[dict[str, Any]]) -> str:
    """The Markdown page."""
    lines = [head, "| row | bar | measured | interval | figures | met | date |", "|-|-|-|-|-|-|-|"]
    lines += [_line(e) for e in entries]
    lines += ["", "## Rows", ""]
    lines += [f"- **{e['row']}**: {e['what']}" for e in entries]
    missed = [e for e in entries if e["incomparable"]]
    if missed:
        lines += ["", "## Not comparable", "", *(f"- **{e['row']}**: {e['incomparable']}" for e in missed)]
    busy = [f"{e['row']} ({e['busy']:.0%})" for e in entries if e["busy"] > QUIET]
    if busy:
        lines += ["", f"Share of all cores that other work took while these were measured: {', '.join(busy)}."]
    lines += ["", "## Measured with", ""]
    seen: dict[str, list[str]] = {}
    for e in entries:
        place = e["environment"]
        versions = ", ".join(f"{n} {v}" for n, v in place.items() if n not in ("date", "commit", "cpu", "cores"))
        text = f"{place['date']}, commit {place['commit']}, {place['cpu']}, {place['cores']} cores, {versions}"
        seen.setdefault(f"{text}; `{e['command']}`", []).append(e["row"])
    lines += [f"- {', '.join(rows)}: {text}" for text, rows in seen.items()]
    return "\n".join(lines) + "\n"


def _line(e: dict[str, Any]) -> str:
    sign = ">=" if e["at_least"] else "<="
    figures = ", ".join(_figure(Figure(**f)) for f in e["figures"])
    interval = f"{_number(e['low'])} to {_number(e['high'])} ({e['interval']})"
    unit = f" {e['unit']}" if e["unit"] else ""
    cells = [
        e["row"],
        f"{sign} {_number(e['bar'])}{unit}",
        f"{_number(e['value'])}{unit}",
        interval,
        figures,
        e["met"],
        e["environment"]["date"],
    ]
    return f"| {' | '.join(cells)} |"


def _figure(figure: Figure) -> str:
    return f"{figure.arm} {_number(figure.value)} {figure.unit}"


def _number(value: float) -> str:
    if value and abs(value) < 0.01:
        return f"{value:.2g}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3f}"
