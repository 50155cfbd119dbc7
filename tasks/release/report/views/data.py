"""Data cards and drift, for people to read: what is in a dataset, what was done to it, how it differs from another."""

from __future__ import annotations

import re
from typing import Any

from markupsafe import Markup

from tasks.data.dataset.shown_media import PICTURE_URL
from tasks.data.selection.splitting import SPLITS
from tasks.release.drawing.charts import Series, line_chart
from tasks.release.evidence import Evidence, as_list, as_object, json_object
from tasks.release.readable import is_number, number, percent

REASONS = 4
EXAMPLES = 2
SOUND = re.compile(r"data:audio/(wav|flac|ogg|mpeg);base64,[A-Za-z0-9+/=]+")


def data_views(evidence: dict[str, Evidence], notes: list[str]) -> list[dict[str, Any]]:
    """One entry for each dataset: steps, sources, labels, lengths, examples and warnings."""
    views = []
    for stage, found in evidence.items():
        counts = json_object(found.records, "counts.json", notes)
        card = json_object(found.records, "card.json", notes)
        if not counts and not card:
            continue
        splits = _in_order({str(k): v for k, v in as_object(counts.get("splits")).items() if is_number(v)})
        views.append(
            {
                "stage": stage,
                "splits": [(name, f"{count:,.0f}") for name, count in splits.items()],
                "steps": [_step(as_object(step)) for step in as_list(counts.get("steps"))],
                "sources": [_source(as_object(source)) for source in as_list(card.get("sources"))],
                "labels": _labels(as_object(counts.get("labels")), list(splits)),
                "columns": [_column(as_object(column)) for column in as_list(card.get("columns"))],
                "opened_with": str(card.get("opened_with") or ""),
                "lengths": _lengths(as_object(card.get("characters"))),
                "examples": _examples(as_object(card.get("examples"))),
                "warnings": [str(warning) for warning in as_list(counts.get("warnings"))],
            }
        )
    return views


def drift_view(stage: str, drift: dict[str, Any]) -> dict[str, Any]:
    """The verdict of a comparison as sentences and rows."""
    rows = [
        {
            "name": str(row.get("name")),
            "size": number(row.get("size")),
            "p": number(row.get("p")),
            "text": str(row.get("told") or ""),
            "drifted": bool(row.get("drifted")),
        }
        for row in map(as_object, as_list(drift.get("differences")))
    ]
    looked = as_object(drift.get("looked_at"))
    return {
        "stage": stage,
        "drifted": bool(drift.get("drifted")),
        "rows": rows,
        "text": f"{number(looked.get('new'))} newer examples against {number(looked.get('old'))} older ones; "
        f"a difference counts below p = {number(drift.get('alpha'))} and above a size of its own."
        + "".join(f" Not tested: {sentence}." for sentence in as_list(drift.get("not_tested"))),
    }


def _in_order(splits: dict[str, Any]) -> dict[str, Any]:
    """Training first, as people think of them; JSON has them by letter."""
    known = [split for split in SPLITS if split in splits]
    return {split: splits[split] for split in [*known, *(s for s in splits if s not in known)]}


def _step(step: dict[str, Any]) -> dict[str, Any]:
    def most(counts: dict[str, Any]) -> str:
        found = sorted(((v, str(k)) for k, v in counts.items() if is_number(v) and v), reverse=True)
        shown = ", ".join(f"{name} {count:,.0f}" for count, name in found[:REASONS])
        return shown + (f" and {len(found) - REASONS} more reasons" if len(found) > REASONS else "")

    before, after = step.get("rows_in"), step.get("rows_out")
    both = is_number(before) and is_number(after) and before > 0
    return {
        "name": str(step.get("step")),
        "in": f"{before:,.0f}" if is_number(before) else "",
        "out": f"{after:,.0f}" if is_number(after) else "",
        "kept": percent(after / before) if both else "",  # type: ignore[operator]
        "dropped": most(as_object(step.get("dropped"))),
        "changed": most(as_object(step.get("changed"))),
    }


def _source(source: dict[str, Any]) -> dict[str, str]:
    size = source.get("bytes")
    return {
        "name": str(source.get("source") or ""),
        "licence": str(source.get("licence") or "not stated"),
        "files": f"{files:,.0f}" if is_number(files := source.get("files")) else "",
        "size": f"{size / 1e6:,.1f} MB" if is_number(size) else "",
        "weight": f"{weight:g}" if is_number(weight := source.get("weight")) else "",
    }


def _column(column: dict[str, Any]) -> dict[str, str]:
    what, least, most, mean = (column.get(name) for name in ("of", "least", "most", "mean"))
    text = ""
    if is_number(least) and is_number(most) and is_number(mean):
        low, high = (f"{n:,.0f}" if float(n).is_integer() else number(n) for n in (least, most))
        text = f"{low} to {high}, mean {number(mean)}" if most > least else low
        text += "" if what == "values" else f" {what}"
    sizes = {name: as_list(of) for name, of in as_object(column.get("sizes")).items()}
    text += "".join(f"; {name} {_span(of)}" for name, of in sizes.items() if len(of) == 2 and all(map(is_number, of)))
    missing = column.get("missing")
    return {
        "name": str(column.get("column") or ""),
        "type": str(column.get("type") or ""),
        "missing": f"{missing:,.0f}" if is_number(missing) else "",
        "text": text,
    }


def _span(of: list[Any]) -> str:
    least, most = (f"{n:,.0f}" if float(n).is_integer() else number(n) for n in of)
    return least if least == most else f"{least} to {most}"


def _labels(table: dict[str, Any], splits: list[str]) -> list[tuple[str, list[str]]]:
    return [
        (str(label), [f"{n:,.0f}" if is_number(n := as_object(of).get(split)) else "" for split in splits])
        for label, of in table.items()
    ]


def _lengths(characters: dict[str, Any]) -> Markup | None:
    """Share of the rows by length, a line for each split; the lengths are powers of two."""
    series = []
    for color, (split, bins) in enumerate(_in_order(characters).items()):
        rows = [row for row in map(as_list, as_list(bins)) if len(row) == 3 and all(map(is_number, row))]
        total = sum(row[2] for row in rows)
        if total:
            series.append(Series(str(split), [(float(row[1]), row[2] / total) for row in rows], color % 6, dots=True))
    return line_chart("share of rows by characters", series, [], x_title="characters", log=True) if series else None


def _examples(examples: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "split": str(split),
            "id": str(row.get("id") or ""),
            "label": str(row.get("label") or ""),
            "text": str(row.get("text") or ""),
            "sounds": [str(s) for s in as_list(row.get("sounds")) if SOUND.fullmatch(str(s))],
            "pictures": [str(p) for p in as_list(row.get("pictures")) if PICTURE_URL.fullmatch(str(p))],
        }
        for split, rows in _in_order(examples).items()
        for row in map(as_object, as_list(rows)[:EXAMPLES])
    ]
