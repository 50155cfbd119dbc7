"""The pictures of a report, each a pure function from numbers to an inline SVG.

Sizes are in the SVG's own units; the page scales them. Colours come from CSS classes (`s0`..`s5` are the series
colours, after Okabe and Ito, 2008, which colour-blind readers can distinguish), and nothing is shown by colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from tasks.release.drawing.svg import Scale, padded, picture, tag
from tasks.release.readable import compact, number, shorten

CHARACTER = 6.3
"""Width of an average character at the charts' 11 px text, for deciding what fits."""
LARGE_CHARACTER = 8.2
"""The same on a phone, where text is set larger against the picture."""
MAX_POINTS = 220


@dataclass(frozen=True)
class Series:
    """One line: points in x order. `dots` marks every point, for series with few."""

    name: str
    points: list[tuple[float, float]]
    color: int = 0
    dots: bool = False


@dataclass(frozen=True)
class Variant:
    """One model of the scatter: size in MB, the metric with its interval, latency in ms (None: not measured)."""

    name: str
    size: float
    value: float
    low: float
    high: float
    latency: float | None = None
    shipped: bool = False


@dataclass
class Spots:
    """Boxes (left, top, right, bottom) that are taken, so that labels can avoid each other."""

    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def overlap(self, box: tuple[float, float, float, float]) -> float:
        return sum(
            max(0.0, min(box[2], b[2]) - max(box[0], b[0])) * max(0.0, min(box[3], b[3]) - max(box[1], b[1]))
            for b in self.taken
        )


def buckets(points: Sequence[tuple[float, float]], limit: int = MAX_POINTS) -> list[tuple[float, float, float, float]]:
    """(x, mean, min, max) of at most `limit` equal runs of neighbouring points: long curves stay small and honest."""
    width = -(-len(points) // limit)
    runs = [points[i : i + width] for i in range(0, len(points), width)] if points else []
    return [
        (run[-1][0], sum(y for _, y in run) / len(run), min(y for _, y in run), max(y for _, y in run)) for run in runs
    ]


def line_chart(
    label: str,
    series: Sequence[Series],
    baselines: Sequence[tuple[str, float]],
    *,
    x_title: str = "step",
    log: bool = False,
) -> Markup:
    """Values over steps; `baselines` are dashed lines labelled at the right edge. Needs one non-empty series.

    log: x on a logarithmic scale; all x are positive then.
    """
    width, height, top, bottom, left = 480.0, 270.0, 12.0, 238.0, 44.0
    right = width - (12 + max((len(name) for name, _ in baselines), default=0) * LARGE_CHARACTER if baselines else 14)
    values = [y for s in series for _, y in s.points] + [value for _, value in baselines]
    steps = [x for s in series for x, _ in s.points]
    y_low, y_high = padded(values)
    x = (
        Scale(min(steps), max(steps), left, right, log=True)
        if log
        else Scale(min(0.0, *steps), max(steps), left, right)
    )
    y = Scale(max(y_low, 0.0) if min(values) >= 0 else y_low, y_high, bottom, top)
    parts = _axes(
        x, y, [f"{t:g}" if t < 1000 or (not log and t < 10000) else compact(t) for t in x.ticks(5)], x_title, height
    )
    for (name, value), at in zip(baselines, spread([y(v) for _, v in baselines], 13), strict=True):
        parts += [
            tag("line", x1=left, x2=right, y1=y(value), y2=y(value), cls="baseline"),
            tag("text", name, x=right + 6, y=at + 4, cls="label"),
        ]
    for one in series:
        runs = buckets(one.points)
        if len(runs) < len(one.points):
            outline = [(a, h) for a, _, _, h in runs] + [(a, low) for a, _, low, _ in reversed(runs)]
            parts.append(tag("polygon", points=_path(outline, x, y), cls=f"band s{one.color}"))
        line = [(a, m) for a, m, _, _ in runs]
        parts.append(tag("polyline", points=_path(line, x, y), cls=f"line s{one.color}"))
        if one.dots or len(line) == 1:
            parts += [
                tag("circle", [tag("title", f"{one.name}, {x_title} {a:g}: {number(b)}")], cx=x(a), cy=y(b), r=3,
                    cls=f"dot s{one.color}")
                for a, b in line
            ]  # fmt: skip
    return picture(width, height, label, parts, "chart")


def _path(points: Sequence[tuple[float, float]], x: Scale, y: Scale) -> str:
    return " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)


def _axes(x: Scale, y: Scale, x_labels: Sequence[str], x_title: str, height: float) -> list[Markup]:
    parts = []
    for tick, text in zip(y.ticks(5), _y_labels(y), strict=True):
        parts.append(tag("line", x1=x.start, x2=x.end, y1=y(tick), y2=y(tick), cls="rule"))
        parts.append(tag("text", text, x=x.start - 7, y=y(tick) + 4, cls="tick end"))
    for tick, text in zip(x.ticks(5), x_labels, strict=True):
        parts.append(tag("line", x1=x(tick), x2=x(tick), y1=y.start, y2=y.start + 4, cls="axis"))
        parts.append(tag("text", text, x=x(tick), y=y.start + 17, cls="tick middle"))
    parts.append(tag("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, cls="axis"))
    parts.append(tag("text", x_title, x=(x.start + x.end) / 2, y=height - 2, cls="tick middle"))
    return parts


def _y_labels(y: Scale) -> list[str]:
    ticks = y.ticks(5)
    decimals = 0 if max(map(abs, ticks)) >= 100 else max(_decimals(tick) for tick in ticks)
    return [f"{tick:.{decimals}f}" for tick in ticks]


def _decimals(value: float) -> int:
    text = f"{value:.6f}".rstrip("0")
    return len(text) - text.index(".") - 1


def spread(wanted: Sequence[float], apart: float) -> list[float]:
    """The positions moved as little as needed to lie `apart`, in their order: labels that do not overlap."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = dict(zip(order, nearest_spaced([wanted[i] for i in order], apart), strict=True))
    return [placed[i] for i in range(len(wanted))]


def scatter(label: str, variants: Sequence[Variant], y_title: str) -> Markup:
    """Size against metric; a circle's area is its latency, whiskers are the intervals. Needs one variant."""
    width, height, top, bottom, right = 480.0, 400.0, 28.0, 360.0, 466.0
    sizes = [v.size for v in variants]
    log = min(sizes) > 0 and max(sizes) / min(sizes) > 8
    low, high = (min(sizes) / 1.5, max(sizes) * 1.6) if log else (0.0, max(sizes) * 1.32 or 1.0)
    y = Scale(*padded([b for v in variants for b in (v.low, v.high)], 0.12), bottom, top)
    left = max(44.0, 10 + LARGE_CHARACTER * max(map(len, _y_labels(y))))
    x = Scale(low, high, left, right, log)
    slowest = max((v.latency for v in variants if v.latency is not None), default=None)
    parts = _axes(x, y, [f"{t:g}" for t in x.ticks(5)], "size, MB" + (" (logarithmic)" if log else ""), height)
    parts.append(tag("text", y_title, x=4, y=12, cls="tick"))
    spots = Spots()
    radii = {v.name: 22 * (v.latency / slowest) ** 0.5 if v.latency is not None and slowest else 5.0 for v in variants}
    radii = {name: max(radius, 3.5) for name, radius in radii.items()}
    for v in variants:
        r, cx, cy = radii[v.name], x(v.size), y(v.value)
        spots.taken += [(cx - r, cy - r, cx + r, cy + r), (cx - 4, y(v.high), cx + 4, y(v.low))]
    for v in sorted(variants, key=lambda v: -radii[v.name]):
        r, cx, cy, cls = radii[v.name], x(v.size), y(v.value), "shipped" if v.shipped else "plain"
        title = f"{v.name}: {number(v.value)} [{number(v.low)}, {number(v.high)}], {number(v.size, 2)} MB"
        title += f", {number(v.latency, 2)} ms" if v.latency is not None else ""
        caps = [
            tag("line", x1=cx - 4, x2=cx + 4, y1=y(end), y2=y(end), cls=f"whisker {cls}") for end in (v.low, v.high)
        ]
        parts += [tag("line", x1=cx, x2=cx, y1=y(v.low), y2=y(v.high), cls=f"whisker {cls}"), *caps]
        parts.append(tag("circle", [tag("title", title)], cx=cx, cy=cy, r=r, cls=f"bubble {cls}"))
        parts.append(tag("circle", cx=cx, cy=cy, r=2.2, cls=f"core {cls}"))
    for v in sorted(variants, key=lambda v: radii[v.name]):
        parts.append(_bubble_label(v, x(v.size), y(v.value), radii[v.name], (left, right, top, bottom), spots))
    return picture(width, height, label, parts, "chart")


def _bubble_label(
    v: Variant, cx: float, cy: float, r: float, frame: tuple[float, float, float, float], spots: Spots
) -> Markup:
    text = shorten(v.name, 22)
    long = len(text) * (CHARACTER + 0.6)
    near = r + 6
    options: list[tuple[float, int, tuple[float, float, float, float]]] = []
    for dx, dy in ((near, 4.0), (-near - long, 4.0), (near * 0.75, -near * 0.75), (near * 0.75, near * 0.75 + 10),
                   (-near * 0.75 - long, -near * 0.75), (-near * 0.75 - long, near * 0.75 + 10),
                   (-long / 2, -near - 4), (-long / 2, near + 14), (near + 12, -38.0), (near + 12, 46.0),
                   (-near - 12 - long, -38.0), (-near - 12 - long, 46.0)):  # fmt: skip
        box = (cx + dx, cy + dy - 11, cx + dx + long, cy + dy + 3)
        outside = max(0, frame[0] - box[0]) + max(0, box[2] - frame[1] - 10)
        outside += max(0, frame[2] - 12 - box[1]) + max(0, box[3] - frame[3])
        options.append((spots.overlap(box) + 40 * outside, len(options), box))
    _, _, box = min(options)
    spots.taken.append(box)
    word = tag("text", text, x=box[0], y=box[3] - 3, cls="label strong" if v.shipped else "label")
    if abs((box[1] + box[3]) / 2 - cy) < 30:
        return word
    edge = box[0] - 3 if box[0] > cx else box[2] + 3
    return Markup("").join([tag("line", x1=cx, y1=cy, x2=edge, y2=(box[1] + box[3]) / 2, cls="leader"), word])


def confusion(label: str, counts: Sequence[Sequence[int]], names: Sequence[str]) -> Markup:
    """Rows: truth, columns: prediction, shade: share of the row. Counts are written where cells are large enough."""
    n = len(counts)
    cell = 36.0 if n <= 12 else 26.0 if n <= 20 else max(8.0, 520 / n)
    shown = [shorten(name, 18) for name in names]
    margin = min(max((len(s) for s in shown), default=1), 18) * CHARACTER + 14
    left, top = margin + 16, margin + 18
    parts = [
        tag("text", "predicted", x=left + n * cell / 2, y=12, cls="tick middle"),
        tag("text", "true", x=0, y=0, cls="tick middle", transform=f"translate(11 {top + n * cell / 2:g}) rotate(-90)"),
    ]
    every = 1 if cell >= 13 else 2 if cell >= 7 else 5
    for i, name in enumerate(shown):
        if i % every == 0:
            middle = i * cell + cell / 2
            parts.append(tag("text", name, x=left - 7, y=top + middle + 4, cls="tick end"))
            turn = f"translate({left + middle + 4:g} {top - 7:g}) rotate(-90)"
            parts.append(tag("text", name, x=0, y=0, cls="tick", transform=turn))
    for i, row in enumerate(counts):
        total = sum(row)
        for j, count in enumerate(row):
            share = count / total if total else 0.0
            title = (
                f"{names[i]} taken for {names[j]}: {count} of {total}" if i != j else f"{names[i]}: {count} of {total}"
            )
            at_x, at_y = left + j * cell, top + i * cell
            parts.append(
                tag("rect", [tag("title", title)], x=at_x + 0.75, y=at_y + 0.75, width=cell - 1.5, height=cell - 1.5,
                    rx=2, cls="cell right" if i == j else "cell wrong", style=f"--share:{share**0.6:.3f}")
            )  # fmt: skip
            if count and cell >= 24:
                cls = "count high" if share > 0.5 else "count"
                parts.append(tag("text", str(count), x=at_x + cell / 2, y=at_y + cell / 2 + 4, cls=cls))
    return picture(left + n * cell + 4, top + n * cell + 4, label, parts, "chart matrix")


def interval(value: float, low: float, high: float, span: tuple[float, float], marks: Sequence[float]) -> Markup:
    """A dot with a whisker for a table cell; `marks` are baselines drawn as thin lines over the same span."""
    x = Scale(*span, 4, 156)
    parts = [tag("line", x1=4, x2=156, y1=10, y2=10, cls="rule")]
    parts += [tag("line", x1=x(m), x2=x(m), y1=2, y2=18, cls="baseline") for m in marks if span[0] <= m <= span[1]]
    parts.append(tag("line", x1=x(low), x2=x(high), y1=10, y2=10, cls="whisker shipped"))
    parts.append(tag("circle", cx=x(value), cy=10, r=4, cls="dot s0"))
    return picture(160, 20, f"{number(value)} between {number(low)} and {number(high)}", parts, "interval")


def nearest_spaced(wishes: Sequence[float], gap: float) -> list[float]:
    """Positions x nearest to the sorted `wishes` (least squares) with x[i+1] - x[i] >= gap.

    Subtracting the summed gaps makes it an isotonic regression, solved exactly by pooling adjacent violators
    (Ayer et al., 1955).
    """
    pools: list[tuple[float, int]] = []
    for i, wish in enumerate(wishes):
        value, count = wish - i * gap, 1
        while pools and pools[-1][0] > value:
            other, many = pools.pop()
            value, count = (value * count + other * many) / (count + many), count + many
        pools.append((value, count))
    flat = [value for value, count in pools for _ in range(count)]
    return [value + i * gap for i, value in enumerate(flat)]
