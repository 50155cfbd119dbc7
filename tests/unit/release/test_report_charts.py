"""The report's pictures: nothing overlaps, nothing is lost, numbers read well."""

# ruff: noqa: RUF001 (minus signs and dashes are what is tested)
from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.release.drawing.charts import Variant, buckets, scatter, spread
from tasks.release.drawing.dag_layout import crossings, layers, layout
from tasks.release.drawing.svg import nice_ticks
from tasks.release.readable import bytes_size, compact, number, percent, rate, seconds, signed


def test_layers_put_a_late_source_next_to_its_consumer() -> None:
    needs = {"a": [], "b": ["a"], "c": ["b"], "late": [], "d": ["c", "late", "ref:elsewhere"]}
    assert layers(needs) == {"a": 0, "b": 1, "c": 2, "late": 2, "d": 3}


def test_a_cycle_is_drawn_rather_than_raised() -> None:
    assert set(layout({"a": ["b"], "b": ["a"], "c": ["c"]}, 100, 40, (10, 10)).centres) == {"a", "b", "c"}


def test_crossings_are_undone_where_they_can_be() -> None:
    needs = {"a": [], "b": [], "c": [], "x": ["c"], "y": ["b"], "z": ["a"]}
    assert crossings([["a", "b", "c"], ["x", "y", "z"]], [("c", "x"), ("b", "y"), ("a", "z")]) == 3
    centres = layout(needs, 100, 40, (10, 10)).centres
    assert all(centres[a][0] == pytest.approx(centres[b][0]) for a, b in (("c", "x"), ("b", "y"), ("a", "z")))


@st.composite
def pipelines(draw: st.DrawFn) -> dict[str, list[str]]:
    n = draw(st.integers(1, 14))
    return {f"s{i}": [f"s{j}" for j in range(i) if draw(st.integers(0, 3)) == 0] for i in range(n)}


@given(pipelines())
def test_no_two_boxes_touch_and_every_arrow_points_down(needs: dict[str, list[str]]) -> None:
    drawn = layout(needs, width=100, height=40, gap=(10, 20))
    places = list(drawn.centres.values())
    for i, (x, y) in enumerate(places):
        assert 50 - 1e-6 <= x <= drawn.width - 50 + 1e-6
        assert 20 - 1e-6 <= y <= drawn.height - 20 + 1e-6
        assert all(abs(x - a) >= 100 - 1e-6 or abs(y - b) >= 40 - 1e-6 for a, b in places[i + 1 :])
    assert all(drawn.centres[n][1] > drawn.centres[m][1] for n, above in needs.items() for m in above)
    tips = {segment.end for segment in drawn.segments if segment.arrow}
    assert len(tips) == sum(bool(above) for above in needs.values())


@given(st.lists(st.floats(0, 50), max_size=8))
def test_spread_labels_never_overlap_and_keep_their_order(wanted: list[float]) -> None:
    placed = spread(wanted, 13)
    ranked = sorted(range(len(wanted)), key=lambda i: wanted[i])
    assert all(placed[b] - placed[a] >= 13 - 1e-6 for a, b in pairwise(ranked))


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=2000))
def test_a_shortened_curve_keeps_its_extremes(losses: list[float]) -> None:
    runs = buckets(list(enumerate(losses)))
    assert len(runs) <= 220
    assert min(low for _, _, low, _ in runs) == min(losses)
    assert max(high for *_, high in runs) == max(losses)
    assert runs[-1][0] == len(losses) - 1


def test_labels_of_variants_in_one_spot_do_not_hide_each_other() -> None:
    crowd = [Variant(f"model-{i}", 2.7, 0.83 + i * 0.001, 0.81, 0.85, 1.0) for i in range(5)]
    words = re.findall(r'<text x="([\d.-]+)" y="([\d.-]+)" class="label">', str(scatter("s", crowd, "F1")))
    places = [(float(x), float(y)) for x, y in words]
    assert len(places) == 5
    assert all(abs(a - c) > 40 or abs(b - d) >= 10 for i, (a, b) in enumerate(places) for c, d in places[i + 1 :])


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_inside(low: float, length: float) -> None:
    high = low + length
    ticks = nice_ticks(low, high)
    assert 1 <= len(ticks) <= 8
    slack = length * 1e-6 + abs(low) * 1e-12
    assert all(low - slack <= t <= high + slack for t in ticks)


def test_numbers_read_well() -> None:
    said = [
        number(0.87349), number(-0.0001), number(-12.345), number(1234.5), number(None), number(float("nan")),
        number(True),
        signed(0.0123), signed(0.0), signed(-0.5), percent(0.274), percent(0.004),
        seconds(0.04), seconds(9.96), seconds(59.7), seconds(204), seconds(3600 * 2 + 300),
        compact(940), compact(15_700), compact(999_999), compact(1_050_000), rate(4e-3), rate(2.5e-5), rate(0.1),
        bytes_size(512), bytes_size(84_000), bytes_size(4_180_000),
    ]  # fmt: skip
    assert [t.replace("\u202f", " ") for t in said] == [
        "0.873", "0.000", "−12.35", "1,234", "–", "–", "–",
        "+0.012", "0.000", "−0.500", "27 %", "0.4 %",
        "0.0 s", "10 s", "1 min 00 s", "3 min 24 s", "2 h 05 min",
        "940", "15.7 k", "1.00 M", "1.05 M", "4e-3", "2.5e-5", "0.1",
        "512 B", "84 kB", "4.2 MB",
    ]  # fmt: skip
