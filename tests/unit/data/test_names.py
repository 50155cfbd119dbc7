"""Names given in a file: counted as a dictionary would, in a fraction of its memory."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.reading import names
from tasks.data.reading.names import GivenNames
from tasks.data.reading.rows import Columns, Row, read_rows
from tasks.data.reading.sources import Source

A, B = "ca978112ca1bbdca", "3e23e8160039594a"
some = st.one_of(st.integers(1, 40), st.integers(0, 40).map(lambda high: high << 32 | 7))
"""Names that are met again, and names that only their first bits tell apart."""


@given(st.lists(some, max_size=200))
def test_names_are_counted_as_a_counter_counts_them(found: list[int]) -> None:
    with mock.patch.object(names, "FIRST", 2):  # so that it grows
        given = GivenNames()
    counts = Counter[int]()
    for name in found:
        counts[name] += 1
        assert given.give(name) == counts[name]


@pytest.mark.parametrize(
    ("id_column", "expected"),
    [("name", ["x", "x-2", B, "x-3"]), (None, [A, f"{A}-2", B, f"{A}-3"])],
)
def test_names_of_rows(tmp_path: Path, id_column: str | None, expected: list[str]) -> None:
    lines = [{"text": text, "name": name} for text, name in (("a", "x"), ("a", "x"), ("b", ""), ("a", "x"))]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = Source(files=str(file), format="jsonl", id_column=id_column)
    rows = list(read_rows(file, "rows.jsonl", source, Columns()))
    assert [row.id for row in rows if isinstance(row, Row)] == [f"rows.jsonl#{name}" for name in expected]


def test_a_name_costs_few_bytes() -> None:
    found = np.random.default_rng(0).integers(1, 1 << 64, 100_000, np.uint64)
    tracemalloc.start()
    given = GivenNames()
    for name in found:
        given.give(int(name))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 40 * len(found)
