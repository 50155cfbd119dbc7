"""The pipeline as a picture: a box for each stage, coloured by what happened to it, arrows for what it needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from tasks.release.drawing.dag_layout import Layout, Point, layout
from tasks.release.drawing.svg import picture, tag
from tasks.release.readable import seconds, shorten

BOX_HEIGHT = 46.0
MARGIN = 6.0

ACTIONS = {
    "run": "ran",
    "reuse": "reused",
    "resume": "resumed",
    "failed": "failed",
    "refused": "refused",
    "skipped": "skipped",
    "waiting": "not reached",
    "data": "read",
    "missing": "missing",
}
"""What a run record calls an action, and what a reader does; the last two stand only in a lineage."""


def dag(stages: Sequence[dict[str, Any]]) -> Markup:
    """The picture of a run's stages ({"name", "kind", "action", "seconds", "reason", "needs"}); empty for none."""
    needs = {str(s["name"]): [str(n) for n in s.get("needs") or []] for s in stages}
    longest = max(
        (max(len(n) * 7.4, len(_second_line(s)) * 6.2) for n, s in zip(needs, stages, strict=True)), default=0
    )
    width = min(max(longest + 30, 124), 190)
    placed = layout(needs, width, BOX_HEIGHT, gap=(16, 24))
    if across := placed.width > 900 and placed.width > placed.height:
        # Many stages side by side read better as a list beside their parents; the layout itself knows only downwards.
        placed = layout(needs, BOX_HEIGHT, width, gap=(14, 40))
    size = (placed.height, placed.width) if across else (placed.width, placed.height)
    parts = _edges(placed, across)
    for stage in stages:
        x, y = _turn(placed.centres[str(stage["name"])], across)
        parts.append(_box(stage, x - width / 2, y - BOX_HEIGHT / 2, width))
    return picture(
        size[0] + 2 * MARGIN,
        size[1] + 2 * MARGIN,
        "Stages of the pipeline and what each one needs",
        [tag("g", parts, transform=f"translate({MARGIN:g} {MARGIN:g})")],
        "chart dag across" if across else "chart dag",
    )


def _turn(point: Point, across: bool) -> Point:
    return (point[1], point[0]) if across else point


def _edges(placed: Layout, across: bool) -> list[Markup]:
    parts = [tag("path", d=_curve(s.start, s.end, across, s.arrow), cls="edge", fill="none") for s in placed.segments]
    for run in placed.runs:
        (x1, y1), (x2, y2) = (_turn(p, across) for p in run)
        parts.append(tag("path", d=f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}", cls="edge", fill="none"))
    for tip in sorted({segment.end for segment in placed.segments if segment.arrow}):
        x, y = _turn(tip, across)
        wings = [(x, y), (x - 7, y - 4), (x - 7, y + 4)] if across else [(x, y), (x - 4, y - 7), (x + 4, y - 7)]
        parts.append(tag("polygon", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in wings), cls="arrow"))
    return parts


def _curve(start: Point, end: Point, across: bool, arrow: bool) -> str:
    end = (end[0], end[1] - 5) if arrow else end
    half = (start[1] + end[1]) / 2
    points = [_turn(p, across) for p in (start, (start[0], half), (end[0], half), end)]
    (a, b), *rest = points
    return f"M{a:.1f} {b:.1f}C" + " ".join(f"{x:.1f} {y:.1f}" for x, y in rest)


def _second_line(stage: dict[str, Any]) -> str:
    action = str(stage.get("action", ""))
    text = {"run": seconds(stage.get("seconds")), "resume": f"resumed, {seconds(stage.get('seconds'))}"}
    return f"{stage.get('kind', '')} \N{MIDDLE DOT} {text.get(action, ACTIONS.get(action, action))}"


def _box(stage: dict[str, Any], x: float, y: float, width: float) -> Markup:
    action = str(stage.get("action", ""))
    cls = action if action in ACTIONS else "skipped"
    fits = int((width - 22) / 6.2)
    title = f"{stage['name']}: {ACTIONS.get(action, action)}. {stage.get('reason') or ''}".strip()
    return tag(
        "g",
        [
            tag("title", title),
            tag("rect", x=x, y=y, width=width, height=BOX_HEIGHT, rx=7, cls="box"),
            tag("rect", x=x, y=y + 8, width=4, height=BOX_HEIGHT - 16, rx=2, cls="mark"),
            tag("text", shorten(str(stage["name"]), int((width - 22) / 7.2)), x=x + 14, y=y + 20, cls="name"),
            tag("text", shorten(_second_line(stage), fits), x=x + 14, y=y + 36, cls="note"),
        ],
        cls=f"stage {cls}",
    )
