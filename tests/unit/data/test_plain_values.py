"""Labels, groups and ids in one spelling: what is equal is one thing, what is missing is missing, nothing else is lost."""

from __future__ import annotations

import math
import unicodedata
import uuid
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.data.plain_values import alike, plain
from tasks.data.steps.labels import Label, spelling_warnings

UUID = uuid.UUID("f81d4fae-7dec-11d0-a765-00a0c91e6bf6")
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.decimals(-1e9, 1e9, places=3)
SCALARS = (
    st.none() | st.booleans() | NUMBERS | st.text() | st.dates() | st.datetimes() | st.times() | st.uuids()
    | st.binary(max_size=20) | st.floats()
)  # fmt: skip


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (1, "1"), (1.0, "1"), ("1", "1"), ("1.0", "1"), ("-3.00", "-3"), (Decimal("1.00"), "1"), (-0.0, "0"),
        (0.5, "0.5"), (Decimal("0.50"), "0.5"), (1e-7, "0.0000001"), (1e22, "1" + "0" * 22),
        ("007.0", "007.0"), ("1.10", "1.10"), ("1e3", "1e3"), ("v1.0", "v1.0"),
        (True, "true"), (False, "false"), ("True", "True"),
        (None, None), (math.nan, None), (Decimal("NaN"), None), ("", None), (" \t", None), (b"", None),
        ("cafe\u0301", "caf\u00e9"), (" x ", " x "), ("nan", "nan"), ("None", "None"),
        (date(2024, 2, 29), "2024-02-29"), (datetime(2024, 2, 29, 1, 2, 3), "2024-02-29T01:02:03"),
        (datetime(2024, 2, 29, tzinfo=UTC), "2024-02-29T00:00:00+00:00"), (time(1, 2), "01:02:00"),
        (UUID, str(UUID)), (UUID.bytes, str(UUID)), ("Gr\u00fc\u00dfe".encode(), "Gr\u00fc\u00dfe"),
    ],
)  # fmt: skip
def test_the_normal_form(value: Any, name: str | None) -> None:
    assert plain(value) == name


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([1], "a list"),
        ({"a": 1}, "a mapping"),
        (b"\xff\xfe", "2 bytes that are no text"),
        (math.inf, "an infinite number"),
        (timedelta(1), "a duration"),
    ],
)
def test_what_can_be_no_name_says_what_it_is(value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        plain(value)


def test_timestamps_keep_their_nanoseconds() -> None:
    import pyarrow as pa

    moments = pa.array([1_700_000_000_123_456_789, 1_700_000_000_000_000_000, None], pa.timestamp("ns")).to_pylist()
    assert [plain(moment) for moment in moments] == ["2023-11-14T22:13:20.123456789", "2023-11-14T22:13:20", None]


@given(SCALARS)
def test_it_is_a_normal_form_or_a_reason_and_never_another_error(value: Any) -> None:
    try:
        name = plain(value)
    except ValueError:
        return
    if name is not None:
        assert plain(name) == name
        assert name.strip() and unicodedata.is_normalized("NFC", name)


@given(NUMBERS)
def test_a_number_is_named_by_its_value_whatever_its_type_or_file(number: Any) -> None:
    name = plain(number)
    assert name is not None
    assert Decimal(name) == (Decimal(repr(number)) if isinstance(number, float) else number)
    if "e" not in repr(number) and isinstance(number, int | float) and abs(number) < 1e15:
        assert plain(repr(number)) == name, "as a csv file spells it"


@given(st.text(), st.text())
def test_strings_are_one_only_where_unicode_or_arithmetic_says_so(a: str, b: str) -> None:
    if plain(a) is not None and plain(a) == plain(b):
        same = unicodedata.normalize("NFC", a) == unicodedata.normalize("NFC", b)
        assert same or Decimal(a) == Decimal(b)


def test_labels_that_differ_in_spelling_alone() -> None:
    names = ["spam", "Spam ", "ham", "\uff33pam", "no  way", "no way", "not way"]
    assert alike(names) == [["Spam ", "spam", "\uff33pam"], ["no  way", "no way"]]
    (shown,) = spelling_warnings(["true", "True", "false"])
    assert "'True', 'true'" in shown and "`label.map`" in shown
    assert spelling_warnings(["a", "b"]) == []


def test_the_labels_of_a_pipeline_are_spelled_as_the_rows_are() -> None:
    label = Label.model_validate(
        {"from": "column:y", "map": {"1.0": "cafe\u0301", "0": "x"}, "keep": ["caf\u00e9", "cafe\u0301"]}
    )
    assert (label.map, label.keep) == ({"1": "caf\u00e9", "0": "x"}, ["caf\u00e9"])
    with pytest.raises(ValidationError, match="'1' is there in two spellings, as 'a' and as 'b'"):
        Label.model_validate({"from": "column:y", "map": {"1.0": "a", "1": "b"}})
    with pytest.raises(ValidationError, match="an empty label"):
        Label.model_validate({"from": "column:y", "keep": [" "]})
