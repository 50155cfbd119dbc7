"""Where the boxes and arrows of a pipeline go: a layered drawing (Sugiyama, Tagawa and Toda, 1981).

Four steps: put each stage in a layer below everything it needs; carry edges that span several layers through a thin
lane, one lane for each *target*, so that many edges into one stage join like a bus; order each layer by the barycentre
of its neighbours to avoid crossings; slide boxes and whole lanes sideways until each stands straight below the median
of what it is joined to, as far as order and spacing allow. The last two are heuristics, so they start from several
orders, and the drawing with few crossings, straight edges and little width is taken.
Pure geometry: names in, coordinates out, in units of pixels, the top left corner at (0, 0).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import pairwise
from statistics import median

Lane = tuple[str, int]
"""A lane's crossing of one layer: (target stage, layer)."""
Cell = str | Lane
Point = tuple[float, float]
Distance = Callable[[Cell, Cell], float]


@dataclass(frozen=True)
class Segment:
    """A piece of an edge between two neighbouring layers; `arrow`: it ends at a stage."""

    start: Point
    end: Point
    arrow: bool


@dataclass(frozen=True)
class Layout:
    """Centres of the stages, edge pieces, straight runs of lanes through a layer, and the size of the drawing."""

    centres: dict[str, Point]
    segments: list[Segment]
    runs: list[tuple[Point, Point]]
    width: float
    height: float


def layers(needs: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Layer of each stage, 0 first: below all it needs, and just above what needs it if that shortens its edges.

    Needs that name no stage are ignored, and so is an edge that would close a cycle: a picture must not fail.
    """
    depth: dict[str, int] = {}
    open_now: set[str] = set()

    def visit(name: str) -> int:
        if name not in depth:
            open_now.add(name)
            above = [visit(other) for other in needs[name] if other in needs and other not in open_now]
            open_now.discard(name)
            depth[name] = 1 + max(above, default=-1)
        return depth[name]

    for name in needs:
        visit(name)
    for name in sorted(needs, key=lambda n: -depth[n]):
        below = [depth[other] for other in needs if name in needs[other] and depth[other] > depth[name]]
        if len(below) > sum(other in needs for other in needs[name]):
            depth[name] = max(depth[name], min(below) - 1)
    return depth


def layout(needs: Mapping[str, Sequence[str]], width: float, height: float, gap: Point, lane: float = 14) -> Layout:
    """Lay out downwards. `width`, `height`: of a box; `gap`: free space (beside, below) a box; `lane`: lane width."""
    depth = layers(needs)
    links, rows = _links(needs, depth)

    def distance(a: Cell, b: Cell) -> float:
        return (_size(a, width, lane) + _size(b, width, lane)) / 2 + gap[0]

    drawings: list[tuple[float, int, list[list[Cell]], dict[Cell, float]]] = []
    for ordered in _orders(rows, links):
        placed = _placed(ordered, links, distance)
        span = max(placed.values(), default=0.0) - min(placed.values(), default=0.0)
        slant = sum(abs(placed[a] - placed[b]) for a, b in links if isinstance(a, str) and isinstance(b, str))
        cost = width * crossings(ordered, links) / 3 + slant + span
        drawings.append((cost, len(drawings), ordered, placed))
    _, _, rows, middle = min(drawings, key=lambda d: d[:2])
    left = min((middle[c] - _size(c, width, lane) / 2 for row in rows for c in row), default=0.0)
    right = max((middle[c] + _size(c, width, lane) / 2 for row in rows for c in row), default=0.0)
    step = height + gap[1]

    def at(cell: Cell, edge: float) -> Point:
        layer = depth[cell] if isinstance(cell, str) else cell[1]
        return middle[cell] - left, layer * step + height / 2 + edge * height / 2

    return Layout(
        centres={name: at(name, 0) for name in needs},
        segments=[Segment(at(a, 1), at(b, -1), arrow=isinstance(b, str)) for a, b in links],
        runs=[(at(cell, -1), at(cell, 1)) for row in rows for cell in row if not isinstance(cell, str)],
        width=right - left,
        height=max(len(rows) * step - gap[1], 0),
    )


def _size(cell: Cell, width: float, lane: float) -> float:
    return width if isinstance(cell, str) else lane


def _links(
    needs: Mapping[str, Sequence[str]], depth: Mapping[str, int]
) -> tuple[list[tuple[Cell, Cell]], list[list[Cell]]]:
    """Edges cut at every layer, and the cells of each layer."""
    links: dict[tuple[Cell, Cell], None] = {}
    rows: list[list[Cell]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for name in sorted(needs, key=lambda n: depth[n]):
        rows[depth[name]].append(name)
    for target, sources in needs.items():
        for source in sources:
            if source not in depth or depth[source] >= depth[target]:
                continue
            path: list[Cell] = [source, *((target, layer) for layer in range(depth[source] + 1, depth[target])), target]
            for a, b in pairwise(path):
                links[a, b] = None
                if not isinstance(b, str) and b not in rows[b[1]]:
                    rows[b[1]].append(b)
    return list(links), rows


def _neighbours(links: Iterable[tuple[Cell, Cell]]) -> tuple[dict[Cell, list[Cell]], dict[Cell, list[Cell]]]:
    above: dict[Cell, list[Cell]] = {}
    below: dict[Cell, list[Cell]] = {}
    for a, b in links:
        below.setdefault(a, []).append(b)
        above.setdefault(b, []).append(a)
    return above, below


def crossings(rows: Sequence[Sequence[Cell]], links: Iterable[tuple[Cell, Cell]]) -> int:
    """How many pairs of edge pieces cross, given the order within layers."""
    place = {cell: i for row in rows for i, cell in enumerate(row)}
    layer = {cell: n for n, row in enumerate(rows) for cell in row}
    by_layer: dict[int, list[tuple[int, int]]] = {}
    for a, b in links:
        by_layer.setdefault(layer[a], []).append((place[a], place[b]))
    return sum(
        (a - c) * (b - d) < 0
        for pieces in by_layer.values()
        for i, (a, b) in enumerate(pieces)
        for c, d in pieces[i + 1 :]
    )


def _starts(rows: list[list[Cell]]) -> list[list[list[Cell]]]:
    """Orders to start from: as given, mirrored, and with all lanes on one side of the boxes."""
    sides = [[sorted(row, key=lambda c: isinstance(c, str) is right) for row in rows] for right in (True, False)]
    return [rows, [row[::-1] for row in rows], *sides, *([row[::-1] for row in side] for side in sides)]


def _orders(rows: list[list[Cell]], links: list[tuple[Cell, Cell]], keep: int = 10) -> list[list[list[Cell]]]:
    """The `keep` orders with the fewest crossings that barycentre sweeps, down and up, come by."""
    above, below = _neighbours(links)
    found: dict[tuple[tuple[Cell, ...], ...], int] = {}
    for start in _starts(rows):
        current = [list(row) for row in start]
        for sweep in range(9):
            if sweep:
                near = above if sweep % 2 else below
                for i in range(len(current)) if sweep % 2 else reversed(range(len(current))):
                    place = {c: n / max(len(row) - 1, 1) for row in current for n, c in enumerate(row)}
                    current[i].sort(key=lambda c: _mean([place[o] for o in near.get(c, [])], place[c]))
            found.setdefault(tuple(tuple(row) for row in current), crossings(current, links))
    best = sorted(found, key=lambda order: found[order])[:keep]
    return [[list(row) for row in order] for order in best]


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _placed(rows: list[list[Cell]], links: list[tuple[Cell, Cell]], distance: Distance) -> dict[Cell, float]:
    """Middle of every cell. The cells of a lane move as one block, so that a lane is one straight line."""
    blocks, left_of = _blocks(rows, distance)
    middle = dict.fromkeys(range(len(blocks)), 0.0)
    for block in _left_to_right(len(blocks), left_of):
        middle[block] = max((middle[a] + gap for (a, b), gap in left_of.items() if b == block), default=0.0)
    home = {cell: i for i, cells in enumerate(blocks) for cell in cells}
    wishes: dict[int, list[int]] = {}
    for a, b in links:
        if home[a] != home[b]:
            # A box wants to stand under the box it continues; a lane gives way.
            times = 3 if isinstance(a, str) and isinstance(b, str) else 1
            wishes.setdefault(home[a], []).extend([home[b]] * times)
            wishes.setdefault(home[b], []).extend([home[a]] * times)
    order = _left_to_right(len(blocks), left_of)
    lefts: dict[int, list[tuple[int, float]]] = {}
    rights: dict[int, list[tuple[int, float]]] = {}
    for (one, two), gap in left_of.items():
        lefts.setdefault(two, []).append((one, gap))
        rights.setdefault(one, []).append((two, gap))
    for sweep in range(24):
        for block in order if sweep % 2 else reversed(order):
            low = max((middle[other] + gap for other, gap in lefts.get(block, [])), default=-math.inf)
            high = min((middle[other] - gap for other, gap in rights.get(block, [])), default=math.inf)
            wish = median([middle[other] for other in wishes.get(block, [])] or [middle[block]])
            middle[block] = max(low, min(wish, high))
    return {cell: middle[i] for cell, i in home.items()}


def _blocks(rows: list[list[Cell]], distance: Distance) -> tuple[list[list[Cell]], dict[tuple[int, int], float]]:
    """Cells that share one position, and (left block, right block) -> least distance.

    A lane is cut where keeping it straight would need two blocks to be left of each other.
    """
    blocks: list[list[Cell]] = []
    left_of: dict[tuple[int, int], float] = {}
    latest: dict[str, int] = {}
    for row in rows:
        before: int | None = None
        for i, cell in enumerate(row):
            block = len(blocks) if isinstance(cell, str) else latest.get(cell[0], len(blocks))
            if block < len(blocks) and before is not None and _reaches(block, before, left_of):
                block = len(blocks)
            if block == len(blocks):
                blocks.append([])
            blocks[block].append(cell)
            if not isinstance(cell, str):
                latest[cell[0]] = block
            if before is not None:
                gap = distance(row[i - 1], cell)
                left_of[before, block] = max(gap, left_of.get((before, block), 0.0))
            before = block
    return blocks, left_of


def _reaches(start: int, goal: int, left_of: Iterable[tuple[int, int]]) -> bool:
    """Whether `goal` lies somewhere right of `start`, or is it."""
    seen, todo = {start}, [start]
    while todo:
        here = todo.pop()
        fresh = {b for a, b in left_of if a == here} - seen
        seen |= fresh
        todo += fresh
    return goal in seen


def _left_to_right(count: int, left_of: Iterable[tuple[int, int]]) -> list[int]:
    sorter: TopologicalSorter[int] = TopologicalSorter({block: [] for block in range(count)})
    for a, b in left_of:
        sorter.add(b, a)
    return list(sorter.static_order())
