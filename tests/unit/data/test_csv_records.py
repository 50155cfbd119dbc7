"""csv: well-formed files come back as the csv module wrote them; a stray quote costs its own line and no other."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from infra.errors import StageError
from infra.open_store import open_store
from tasks.data.parts.prepare import COUNTS, Preparation, prepare_shard
from tasks.data.reading.csv_records import MANY, VERY_MANY, CsvRows
from tasks.data.reading.rows import Columns, Rejected, Row, read_rows
from tasks.data.reading.sources import Source
from tasks.data.steps.steps import RowSteps

Read = list[tuple[int, list[str] | str]]


def read(raw: bytes, **source: Any) -> tuple[Read, list[str]]:
    """(rows and what is set aside, warnings)."""
    warnings: list[str] = []
    made = Source.model_validate({"files": "a", "format": "csv", **source})
    rows = CsvRows(io.BytesIO(raw), "a.csv", made, warnings.append)
    return list(rows), warnings


def plain(count: int, begin: int = 0) -> list[str]:
    return [f"{i},maple yarrow {i},{('neg', 'pos')[i % 2]}" for i in range(begin, begin + count)]


def of_lines(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in ["id,text,label", *lines]).encode()


def test_two_stray_quotes_cost_two_lines() -> None:
    lines = plain(5000)
    lines[299], lines[3299] = '299,"maple 299,pos', '3299,"birch 3299,pos'
    rows, warnings = read(of_lines(lines))
    assert [number for number, _ in rows] == list(range(2, 5002)), "every line is a row or set aside"
    bad = [(number, why) for number, why in rows if isinstance(why, str)]
    assert [number for number, _ in bad] == [301, 3301]
    assert bad[0][1] == "not valid CSV: ',' expected after '\"' in line 3301; reading went on at the next line"
    assert "a quote is opened and never closed in line 5001" in bad[1][1]
    assert len(warnings) == 1 and "2, the first in line 301" in warnings[0] and "quoting: none" in warnings[0]


def test_an_unclosed_quote_at_the_beginning_of_a_line() -> None:
    lines = [f"maple {i}\t{i}" for i in range(5000)]
    lines[299] = '"maple 299\t299'
    raw = "".join(f"{line}\n" for line in ["text\tlabel", *lines]).encode()
    rows, _ = read(raw, delimiter="\t")
    assert [number for number, fields in rows if isinstance(fields, str)] == [301]
    assert len(rows) == 5000
    as_text, warnings = read(raw, delimiter="\t", quoting="none")
    assert as_text[299] == (301, ['"maple 299', "299"]) and len(as_text) == 5000 and warnings == []


def test_two_quotes_that_fit_together_are_noticed_by_what_lies_between() -> None:
    """The row that they make is valid CSV of the right number of fields; 100 rows lie in it."""
    lines = plain(200)
    lines[50], lines[150] = '50,"maple 50,pos', '150,birch 150",pos'
    rows, warnings = read(of_lines(lines))
    bad = {number: why for number, why in rows if isinstance(why, str)}
    assert bad[52].startswith("a quote that it opens takes in 100 lines which look like rows")
    assert list(bad) == [52] and len(rows) == 200 and len(warnings) == 1
    assert rows[150] == (152, ["150", 'birch 150"', "pos"])


@pytest.mark.parametrize("count", [2, MANY * 3])
def test_fields_with_line_breaks_are_read(count: int) -> None:
    """Prose, code, logs and tables, also with as many commas in each line as the file has."""
    texts = [
        *(f"maple {i}" for i in range(10)),
        "".join(f"Dear {i}, and so on, for the {i}th time:\n" for i in range(count)),
        "".join(f"def f{i}(a, b):\n    return a + b\n\n" for i in range(count)),
        "".join(f"2026-11-30 10:{i:02}:00,INFO,step {i} is done\n" for i in range(count)),
        "".join(f"{i},\n" if i % 2 else f"{i}, {i}, {i}, {i}\n" for i in range(count)),
    ]
    file = io.StringIO()
    csv.writer(file).writerows([["id", "text", "label"], *([str(i), text, "x"] for i, text in enumerate(texts))])
    rows, warnings = read(file.getvalue().encode())
    assert [fields[1] for _, fields in rows] == texts and warnings == []


def test_a_field_of_very_many_lines_is_read_and_said() -> None:
    rows, warnings = read(b'text\n"' + b"one\n" * VERY_MANY + b'"\ntwo\n')
    assert [len(fields[0]) for _, fields in rows] == [4 * VERY_MANY, 3]
    assert len(warnings) == 1 and "a.csv: the row of line 2 spans 1,001 lines" in warnings[0]


def test_the_rest_of_a_broken_field_is_no_row() -> None:
    """`and left",pos` has the right number of fields, but it is the end of the row before it."""
    rows, _ = read(b'text,label\n"he said "no" to me\nand left",pos\n"so\nit went",neg\n5" nails,pos\nlast,neg\n')
    assert [fields for _, fields in rows if isinstance(fields, list)] == [
        ["so\nit went", "neg"],
        ['5" nails', "pos"],
        ["last", "neg"],
    ]
    assert [number for number, fields in rows if isinstance(fields, str)] == [2, 3]


def test_a_row_of_many_lines_with_another_number_of_fields() -> None:
    rows, _ = read(b'id,text\n1,"a\nb\nc",more\n2,"d\n3,e\n4,f",more\n5,g\n')
    assert [(number, fields) for number, fields in rows] == [
        (2, "another number of fields than the header (3 instead of 2), lines 2 to 4"),
        (
            5,
            "a quote that it opens takes in lines which look like rows, up to line 7; reading went on at the next line",
        ),
        (6, ["3", "e"]),
        (7, "another number of fields than the header (3 instead of 2)"),
        (8, ["5", "g"]),
    ]


def test_escapes() -> None:
    raw = b'id,text\n1,"she said \\"no\\", twice"\n2,a\\,b\n3,"c ""d"" e"\n'
    assert [fields for _, fields in read(raw, escape="\\")[0]] == [
        ["1", 'she said "no", twice'],
        ["2", "a,b"],
        ["3", 'c "d" e'],
    ]
    unescaped, _ = read(raw)
    assert [number for number, fields in unescaped if isinstance(fields, str)] == [2, 3]
    assert [fields for _, fields in read(b"a,b\n1,x\\,y\n", quoting="none", escape="\\")[0]] == [["1", "x,y"]]


def test_line_ends() -> None:
    for raw in (b"a,b\r\n1,x\r\n\r\n2,y\r\n", b"a,b\n1,x\n2,y", b"a,b\n1,x\r2,y\n", b"\xef\xbb\xbfa,b\n1,x\n\n2,y\n"):
        assert [fields for _, fields in read(raw)[0]] == [["1", "x"], ["2", "y"]], raw


def test_a_header_that_a_quote_swallows() -> None:
    with pytest.raises(
        StageError, match=r"(?s)sources: a\.csv: the header cannot be read: .*never closed.*quoting: none"
    ):
        read(b'id,"text\n1,a\n2,b\n')


def test_marks_that_contradict_each_other() -> None:
    for wrong in ({"escape": ","}, {"escape": '"'}, {"delimiter": '"'}, {"delimiter": "\n"}):
        with pytest.raises(ValidationError, match="three different characters"):
            Source.model_validate({"files": "a", "format": "csv", **wrong})
    Source.model_validate({"files": "a", "format": "csv", "delimiter": '"', "quoting": "none"})
    with pytest.raises(ValidationError, match="`quoting` and `escape` go with format csv"):
        Source.model_validate({"files": "a", "format": "jsonl", "quoting": "none"})


FIELDS = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=12)


@given(
    st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(FIELDS, min_size=n, max_size=n), min_size=1, max_size=30)),
    st.sampled_from(",;\t|"),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_what_the_csv_module_writes_comes_back(rows: list[list[str]], delimiter: str, end: str, quoting: Any) -> None:
    """Its reader is the reference: it too skips rows of which nothing is written."""
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows([["x"] * len(rows[0]), *rows])
    text = file.getvalue()
    expected = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if row][1:]
    assert [fields for _, fields in read(text.encode(), delimiter=delimiter)[0]] == expected


@given(st.integers(0, 59), st.integers(0, 30))
def test_one_stray_quote_costs_one_line_at_most(line: int, place: int) -> None:
    lines = plain(60)
    lines[line] = lines[line][:place] + '"' + lines[line][place:]
    rows, _ = read(of_lines(lines))
    assert [number for number, _ in rows] == list(range(2, 62))
    kept = [fields for number, fields in rows if number != line + 2]
    assert kept == [text.split(",") for i, text in enumerate(lines) if i != line]


@given(st.lists(st.text(alphabet='a,"\n\r\\', max_size=12), max_size=20))
def test_any_bytes_end_in_rows_or_reasons(pieces: list[str]) -> None:
    """Every line of the file is accounted for: as part of a row, blank, or set aside."""
    raw = ("a,b\n" + "".join(pieces)).encode()
    for source in ({}, {"quoting": "none"}, {"escape": "\\"}):
        rows, _ = read(raw, **source)
        numbers = [number for number, _ in rows]
        assert numbers == sorted(numbers)
        assert all(isinstance(fields, str) or len(fields) == 2 for _, fields in rows)


def test_a_shard_counts_every_line_and_keeps_what_is_said(tmp_path: Path) -> None:
    lines = plain(60)
    lines[5] = '5,"maple,pos'
    (tmp_path / "a.csv").write_bytes(of_lines(lines))
    import hashlib

    sha = hashlib.sha256((tmp_path / "a.csv").read_bytes()).hexdigest()
    source = Source.model_validate({"files": "a.csv", "format": "csv"})
    arguments = {
        "preparation": Preparation(source=source, steps=RowSteps()).model_dump(mode="json"),
        "known_runs": [],
        "files": [{"location": str(tmp_path / "a.csv"), "path": "a.csv", "sha256": sha}],
    }
    (tmp_path / "part").mkdir()
    prepare_shard(arguments, tmp_path / "part", open_store(str(tmp_path / "store")))
    counts = json.loads((tmp_path / "part" / COUNTS).read_text())
    assert (counts["units"], counts["rejected_count"], counts["rows"]) == (60, 1, 59)
    assert counts["rejected"][0]["line"] == 7
    assert len(counts["warnings"]) == 1 and "line 7" in counts["warnings"][0]


def test_columns_nobody_asked_for_may_share_a_name(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b"text,,\nhello,,\n")
    (row,) = read_rows(file, "a.csv", Source.model_validate({"files": str(file), "format": "csv"}), Columns())
    assert isinstance(row, Row) and row.text == "hello"


def test_utf16_is_read(tmp_path: Path) -> None:
    """As spreadsheets save it; without a mark, where the source says so."""
    rows = "".join(f"é {i},{i}\n" for i in range(30_000))
    for name, raw, more in (
        ("a.csv", ("text,n\n" + rows).encode("utf-16"), {}),
        ("a.csv", ("text,n\n" + rows).encode("utf-16"), {"fallback_encoding": "utf-16"}),
        ("b.csv", ("text,n\r\n" + rows).encode("utf-16-be"), {"fallback_encoding": "utf-16-be"}),
        ("c.csv", ("text,n\n" + rows).encode("utf-32"), {}),
        ("d.csv", ("text,n\n" + rows).encode("utf-8"), {"fallback_encoding": "utf-16"}),
        ("e.csv", ("text,n\n" + rows).replace("\n", "\r").encode("utf-8"), {}),
        ("f.csv", ("text,n\n" + rows).replace("\n", "\r").encode("utf-16"), {}),
    ):
        file = tmp_path / name
        file.write_bytes(raw)
        found = list(read_rows(file, name, Source.model_validate({"files": name, "format": "csv", **more}), Columns()))
        assert [row.text if isinstance(row, Row) else row for row in found] == [f"é {i}" for i in range(30_000)], name
    file = tmp_path / "g.csv"
    file.write_bytes(("text\n" + "ok\n" * 3).encode("utf-16") + b"x")
    *good, cut = read_rows(file, "g.csv", Source.model_validate({"files": "g", "format": "csv"}), Columns())
    assert len(good) == 3 and isinstance(cut, Rejected)
    (tmp_path / "h.csv").write_bytes("text\nok\n".encode("utf-16-le"))
    with pytest.raises(StageError, match=r"(?s)no column 'text'.*looks like UTF-16"):
        list(read_rows(tmp_path / "h.csv", "h", Source.model_validate({"files": "h", "format": "csv"}), Columns()))
