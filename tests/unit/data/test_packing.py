"""Rows of packed documents: where each stands is identity, so another way to find the same rows must find the same."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.tokens.packing import _ascending, best_fit

Stretch = tuple[int, int, int]


def one_by_one(lengths: list[int], context: int) -> list[list[Stretch]]:
    """Best-fit decreasing by its definition: rows of (document, start, length), each stretch placed by itself.

    Of rows with the same room, the one that was touched last is taken.
    """
    parts = [
        (document, start, min(context, length - start))
        for document, length in enumerate(lengths)
        for start in range(0, length, context)
    ]
    rows: list[list[Stretch]] = []
    room: list[int] = []
    touched: list[int] = []
    for time, part in enumerate(sorted(parts, key=lambda part: -part[2])):
        fits = [row for row in range(len(rows)) if room[row] >= part[2]]
        if fits:
            chosen = min(fits, key=lambda row: (room[row], -touched[row]))
        else:
            chosen = len(rows)
            rows.append([])
            room.append(context)
            touched.append(time)
        rows[chosen].append(part)
        room[chosen] -= part[2]
        touched[chosen] = time
    return rows


@given(st.integers(1, 24).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(0, 2 * c + 2), max_size=80))))
def test_best_fit_is_its_definition_to_the_last_place(given: tuple[int, list[int]]) -> None:
    context, lengths = given
    plan = best_fit(np.array(lengths, np.int64), context)
    stretches = list(zip(plan.document.tolist(), plan.start.tolist(), plan.length.tolist(), strict=True))
    found = [stretches[begin:end] for begin, end in zip(plan.first[:-1], plan.first[1:], strict=True)]
    assert found == one_by_one(lengths, context)


@given(st.lists(st.sampled_from([0, 1, 2, 1 << 16, (1 << 16) + 1, 3 << 16, 1 << 40, (1 << 40) + 1])))
def test_order_of_numbers_of_more_than_16_bits(numbers: list[int]) -> None:
    assert _ascending(np.array(numbers, np.int64)).tolist() == sorted(range(len(numbers)), key=numbers.__getitem__)
