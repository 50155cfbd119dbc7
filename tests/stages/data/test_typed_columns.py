"""Columns that pass through a dataset: typed, unchanged, part of what makes two rows equal."""

from __future__ import annotations

import base64
import json
import struct
from datetime import date
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from infra.artifacts import Manifest
from infra.errors import StageError
from tasks.data.dataset.column_figures import ColumnFigures, column_card
from tasks.data.hashing import content_digest
from tasks.data.parts import prepare
from tasks.data.reading import records
from tasks.data.reading.typed_columns import CONVERTERS, ColumnType, arrow_type, values_reader
from tasks.stages import dataset

PNG = b"\x89PNG\r\n\x1a\n"
COLUMNS: dict[str, ColumnType] = {
    "price": "float32",
    "photo": "binary",
    "size": "int32",
    "new": "bool",
    "brand": "string",
}
GOODS = [
    {"title": f"thing {i}", "price": i / 3, "photo": PNG + bytes([i]), "size": i, "new": i % 2 == 0, "brand": f"b{i % 3}", "kind": "ab"[i % 2]}
    for i in range(40)
]  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))


def write(folder: Path, kind: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A table of the rows in that format; the source that reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"goods.{kind}"
    spelled = [{k: base64.b64encode(v).decode() if isinstance(v, bytes) else v for k, v in row.items()} for row in rows]
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in spelled))
    elif kind == "csv":
        pyarrow.csv.write_csv(pa.Table.from_pylist(spelled), file)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=20)
    else:
        pyarrow.feather.write_feather(pa.Table.from_pylist(rows), file, compression="uncompressed")
    return {"files": str(file), "format": kind, "text_column": "title", "columns": COLUMNS}


def made(jobs: ModuleType, folder: Path, source: dict[str, Any], **more: Any) -> Any:
    inputs, previous = more.pop("inputs", {}), more.pop("previous", None)
    params = {"sources": [source], "split": {"by": "row", "validation": 0.2, "test": 0.3}, **more}
    job = jobs.make_job(
        folder, dataset.Params.model_validate(params), inputs, previous=previous, store=folder.parent / "store"
    )
    job.version = dataset.STAGE.version
    job.metrics = dataset.run(job)
    jobs.collect(job)
    return job


def rows_of(job: Any) -> list[dict[str, Any]]:
    return [row for file in sorted(job.output.rglob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def without_place(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(
        ({k: v for k, v in row.items() if k not in ("id", "group")} for row in rows), key=lambda row: str(row["text"])
    )


# --- the way through --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "arrow", "jsonl", "csv"])
def test_the_same_rows_come_out_of_every_format(jobs: ModuleType, tmp_path: Path, kind: str) -> None:
    job = made(jobs, tmp_path / "a", write(tmp_path, kind, GOODS), label={"from": "column:kind"})
    found = rows_of(job)
    schema = pq.read_schema(next(job.output.rglob("*.parquet")))
    assert schema.names == ["id", "text", "group", "label", "brand", "new", "photo", "price", "size"]
    assert [str(schema.field(c).type) for c in sorted(COLUMNS)] == ["string", "bool", "binary", "float", "int32"]
    (as_float32,) = ([struct.unpack("<f", struct.pack("<f", row["price"]))[0] for row in GOODS],)
    wanted = [
        {**row, "price": price, "text": row["title"], "label": row["kind"]}
        for row, price in zip(GOODS, as_float32, strict=True)
    ]
    for row in wanted:
        del row["title"], row["kind"]
    assert without_place(found) == sorted(wanted, key=lambda row: str(row["text"]))
    assert json.loads((job.output / "dataset.json").read_text())["columns"] == schema.names
    assert len({row["id"] for row in found}) == 40


def test_another_stage_s_columns_pass_on(jobs: ModuleType, tmp_path: Path) -> None:
    first = made(jobs, tmp_path / "a", write(tmp_path, "parquet", GOODS))
    goods = jobs.stored(tmp_path / "store", first.output, "dataset", stage="goods")
    source = {"stage": "goods", "columns": {"photo": "binary", "price": "float64"}}
    found = rows_of(made(jobs, tmp_path / "b", source, inputs={"sources": [goods]}))
    before = {row["id"]: row for row in rows_of(first)}
    assert len(found) == 40 and all(
        (row["photo"], row["price"]) == (before[row["id"]]["photo"], before[row["id"]]["price"]) for row in found
    )


def test_a_column_that_is_not_there_is_an_error_with_a_guess(jobs: ModuleType, tmp_path: Path) -> None:
    for kind in ("parquet", "arrow", "csv"):
        source = {**write(tmp_path, kind, GOODS), "columns": {"prise": "float32"}}
        with pytest.raises(StageError, match=r"(?s)no column 'prise'.*Did you mean 'price'\?"):
            made(jobs, tmp_path / kind, source)
    with pytest.raises(StageError, match=r"(?s)no row of sources\[0\] .* has a column 'prise'.*Did you mean 'price'\?"):
        made(jobs, tmp_path / "j", {**write(tmp_path, "jsonl", GOODS), "columns": {"prise": "float32"}})


def test_a_value_of_another_type_sets_its_row_aside(jobs: ModuleType, tmp_path: Path) -> None:
    rows = [*GOODS, {**GOODS[0], "title": "bad", "price": "cheap"}, {**GOODS[0], "title": "none", "price": None}]
    source = write(tmp_path, "jsonl", rows)
    job = made(jobs, tmp_path / "a", source, max_bad_share=0.1)
    (line,) = (job.records / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line) == {"path": "goods.jsonl", "line": 41, "reason": "column 'price' holds no float32: 'cheap'"}
    assert [row["price"] for row in rows_of(job) if row["text"] == "none"] == [None], "a missing value stays missing"
    with pytest.raises(StageError, match=r"1 of 42 rows cannot be read \(2.4%, allowed 1.0%\)"):
        made(jobs, tmp_path / "b", source)


# --- types ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("string", {"a": "a", 3: "3", True: "true", 2.5: "2.5", 2.0: "2", date(2024, 1, 2): "2024-01-02"}, ["\ud800", b"a", [1]]),
        ("bool", {"True": True, "0": False, 1: True}, ["yes", 2, b"1", []]),
        ("int32", {"7": 7, 7.0: 7, Decimal(-3): -3, True: 1}, ["7.5", 7.5, 1 << 31, b"7", "", float("inf"), float("nan")]),
        ("int64", {1 << 62: 1 << 62}, [1 << 63, "many"]),
        ("float32", {"2.5": 2.5, Decimal("0.5"): 0.5}, [1e39, b"1", "1,5", {}]),
        ("float64", {1e300: 1e300, 3: 3.0}, [10**400, "x"]),
        ("binary", {b"\0\xff": b"\0\xff", "AP8=": b"\0\xff"}, ["AP8", 3, {"path": "a.png", "bytes": None}]),
        ("json", {'{"b": [1, "\u00e9"], "a": null}': '{"a":null,"b":[1,"é"]}', ("x", 2): '["x",2]', 3: "3"}, ["[1,", "word", b"1", float("nan"), ["\ud800"]]),
    ],
)  # fmt: skip
def test_what_converts_and_what_does_not(kind: ColumnType, good: dict[Any, Any], bad: list[Any]) -> None:
    read = values_reader({"x": kind}, empty_is_missing=False)
    for value, converted in good.items():
        (found,) = read({"x": value})
        assert found == converted and type(found) is type(converted)
        assert pa.array([found], arrow_type(kind)).to_pylist() == [converted]
    for value in bad:
        shown = read({"x": value})
        assert isinstance(shown, str) and shown.startswith(f"column 'x' holds no {kind}: "), value


def test_an_image_of_hugging_face_is_its_bytes_and_an_empty_field_of_csv_is_missing() -> None:
    assert values_reader({"x": "binary"}, empty_is_missing=False)({"x": {"bytes": b"a", "path": "a.png"}}) == (b"a",)
    columns: dict[str, ColumnType] = {"b": "string", "a": "float32"}
    assert values_reader(columns, empty_is_missing=True)({"a": "", "b": ""}) == (None, "")


@given(
    st.sampled_from(sorted(CONVERTERS)),
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.integers())),
)
def test_what_is_read_can_always_be_stored(kind: ColumnType, value: Any) -> None:
    found = values_reader({"x": kind}, empty_is_missing=False)({"x": value})
    if not isinstance(found, str):
        pa.array(list(found), arrow_type(kind))


# --- equal rows -------------------------------------------------------------------------------------------------------

cells = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-9, 9),
    st.floats(allow_nan=False),
    st.text("a1", max_size=3),
    st.binary(max_size=3),
)


@given(st.text("ab", max_size=3), st.lists(cells, max_size=3), st.text("ab", max_size=3), st.lists(cells, max_size=3))
def test_rows_have_one_digest_exactly_if_they_are_equal(a: str, x: list[Any], b: str, y: list[Any]) -> None:
    equal = a == b and [(type(v), repr(v)) for v in x] == [(type(v), repr(v)) for v in y]
    assert (content_digest(a, x) == content_digest(b, y)) == equal


def test_rows_are_duplicates_if_text_and_columns_are_equal(jobs: ModuleType, tmp_path: Path) -> None:
    rows = [
        GOODS[0],
        GOODS[0],
        {**GOODS[0], "price": 9.0},
        {**GOODS[0], "photo": b"x"},
        {**GOODS[0], "title": "other"},
        *GOODS[1:9],
    ]
    job = made(jobs, tmp_path / "a", write(tmp_path, "parquet", rows))
    assert job.metrics["rows"] == 12
    bare = {**write(tmp_path, "parquet", rows), "columns": {"photo": "binary"}, "text_column": None}
    assert made(jobs, tmp_path / "b", bare).metrics["rows"] == 10


def test_a_frozen_test_split_holds_the_columns_too(jobs: ModuleType, tmp_path: Path) -> None:
    source = {**write(tmp_path, "parquet", GOODS), "text_column": None, "id_column": "title"}
    first = made(jobs, tmp_path / "a", source)
    identity = {"version": first.version, "params": first.params.model_dump(mode="json", by_alias=True)}
    last: Manifest = first.store.commit(
        kind="dataset", type="dataset", key="0", attempt="0", payload_dir=first.output, identity=identity
    )
    write(tmp_path, "parquet", [*GOODS, {**GOODS[0], "title": "new", "price": 77.0}])
    made(jobs, tmp_path / "b", source, previous=last)
    tested = pq.read_table(next((first.output / "test").iterdir())).to_pylist()[0]["size"]
    write(tmp_path, "parquet", [{**row, "photo": b"another"} if row["size"] == tested else row for row in GOODS])
    with pytest.raises(StageError, match="1 examples of the frozen test split would change or go"):
        made(jobs, tmp_path / "c", source, previous=last)
    fewer = {**source, "columns": {"price": "float32"}}
    with pytest.raises(StageError, match="examples of the frozen test split would change or go"):
        made(jobs, tmp_path / "d", fewer, previous=last)


# --- rows without a text ----------------------------------------------------------------------------------------------


def test_rows_need_no_text(jobs: ModuleType, tmp_path: Path) -> None:
    source = {**write(tmp_path, "parquet", GOODS), "text_column": None}
    job = made(jobs, tmp_path / "a", source, label={"from": "column:kind", "map": {"a": "A", "b": "B"}})
    assert {row["text"] for row in rows_of(job)} == {""} and job.metrics["rows"] == 40
    steps = [step["step"] for step in json.loads((job.records / "counts.json").read_text())["steps"]]
    assert steps == ["read", "label", "exact duplicates"]
    card = json.loads((job.records / "card.json").read_text())
    assert card["characters"] == {} and card["examples"]["train"][0]["label"] in "AB"
    names = {row["id"] for row in rows_of(job)}
    write(tmp_path, "parquet", list(reversed(GOODS)))
    assert {row["id"] for row in rows_of(made(jobs, tmp_path / "b", source))} == names, "a row is named by its content"


@pytest.mark.parametrize(
    "more",
    [{"language": {"keep": ["en"]}}, {"quality": {"gopher": True}}, {"pii": {"mask": ["email"]}}, {"clean": {"min_chars": 9}},
     {"dedup": {"near": {}}}, {"decontaminate": {"against": ["other"]}}],
    ids=lambda more: next(iter(more)),
)  # fmt: skip
def test_steps_that_look_at_texts_are_refused_without_them(more: dict[str, Any]) -> None:
    source = {"files": "x", "format": "parquet", "columns": {"photo": "binary"}}
    dataset.Params.model_validate({"sources": [source], **more})
    with pytest.raises(ValidationError, match=f"`{next(iter(more))}.*` looks at texts, and the rows have none"):
        dataset.Params.model_validate({"sources": [{**source, "text_column": None}], **more})


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"format": "text", "columns": {"a": "string"}}, "format text has no columns but the text"),
        ({"format": "lines", "text_column": None}, "format lines has no columns but the text"),
        ({"format": "csv", "text_column": None}, "rows without a text need `columns`"),
        ({"format": "csv", "columns": {"label": "string"}}, "a dataset's rows have a 'label' already"),
        ({"format": "csv", "columns": {"a": "float16"}}, "Input should be 'string'"),
        ({"format": "csv", "fallback_encoding": "utf-9"}, "unknown encoding: utf-9"),
        ({"format": "csv", "fallback_encoding": "rot13"}, "'rot13' is not a text encoding"),
    ],
)
def test_sources_that_make_no_sense(source: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        dataset.Params.model_validate({"sources": [{"files": "x", **source}]})


def test_all_sources_of_a_dataset_have_the_same_columns() -> None:
    one = {"files": "x", "format": "csv", "columns": {"a": "string"}}
    dataset.Params.model_validate({"sources": [one, {**one, "files": "y"}]})
    for other in ({**one, "columns": {"a": "binary"}}, {**one, "text_column": None}):
        with pytest.raises(ValidationError, match=r"sources\[1\] has other columns than sources\[0\]"):
            dataset.Params.model_validate({"sources": [one, other]})


# --- memory, figures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_large_values_are_held_a_few_at_a_time(
    jobs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """300 images of 100 kB: a batch by rows would be all of them. The file's own groups (20 rows) are read whole."""
    for room in (records, prepare):
        monkeypatch.setattr(room, "BATCH_BYTES", 1 << 20)
    rows = [{"photo": i.to_bytes(2) * 50_000, "size": i} for i in range(300)]
    source = {**write(tmp_path, kind, rows), "columns": {"photo": "binary"}, "text_column": None}
    seen: list[tuple[int, int]] = []
    plain = prepare.row_batch

    def spied(rows: Any, schema: pa.Schema) -> pa.RecordBatch:
        seen.append((len(rows), pa.total_allocated_bytes()))
        return plain(rows, schema)

    before = pa.total_allocated_bytes()
    monkeypatch.setattr(prepare, "row_batch", spied)
    job = made(jobs, tmp_path / "a", source)
    assert job.metrics["rows"] == 300 and sum(rows for rows, _ in seen) == 300
    assert max(rows for rows, _ in seen) <= 11
    assert max(held for _, held in seen) - before < 12 << 20, "of 30 MB"
    groups = [pq.ParquetFile(file).metadata for file in job.output.rglob("*.parquet")]
    assert max(meta.row_group(i).num_rows for meta in groups for i in range(meta.num_row_groups)) <= 11


values = st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6), st.just(float("inf"))), max_size=20)


@given(st.lists(values, max_size=4))
def test_figures_of_parts_add_up_to_those_of_the_whole(parts: list[list[float | None]]) -> None:
    metrics = []
    for part in parts:
        figures = ColumnFigures()
        figures.add("a/b", pa.array(part, pa.float64()))
        metrics.append({"train": 3.0, **figures.to_metrics()})
    (line,) = column_card({"a/b": "float64"}, metrics)
    everything = [value for part in parts for value in part]
    finite = [value for value in everything if value is not None and value != float("inf")]
    assert line["missing"] == everything.count(None)
    assert (line["least"], line["most"]) == ((min(finite), max(finite)) if finite else (None, None))
    assert line["mean"] == (pytest.approx(sum(finite) / len(finite), abs=1e-6) if finite else None)


def test_the_card_lists_the_columns(jobs: ModuleType, tmp_path: Path) -> None:
    card = json.loads((made(jobs, tmp_path / "a", write(tmp_path, "parquet", GOODS)).records / "card.json").read_text())
    lines = {line.pop("column"): line for line in card["columns"]}
    assert lines["size"] == {"type": "int32", "of": "values", "missing": 0, "least": 0, "most": 39, "mean": 19.5}
    assert lines["photo"] == {"type": "binary", "of": "bytes", "missing": 0, "least": 9, "most": 9, "mean": 9}
    assert lines["brand"]["of"] == "characters" and lines["new"]["mean"] == 0.5
    (first, *_) = card["examples"]["train"]
    assert first["text"].startswith("thing ") and "\nphoto: 9 bytes\nprice: " in first["text"]
    assert base64.b64decode(first["pictures"][0].removeprefix("data:image/png;base64,")).startswith(PNG)


NUMBERS = st.one_of(
    st.integers(), st.integers(-(2**31), 2**31 - 1), st.floats(), st.floats(width=32), st.booleans(), st.just("3")
)


@pytest.mark.parametrize("kind", ["int32", "int64", "float32", "float64"])
@given(values=st.lists(NUMBERS, max_size=4))
def test_a_list_of_numbers_is_converted_as_each_of_them_is(kind: Any, values: list[Any]) -> None:
    together = values_reader({"x": f"list<{kind}>"}, empty_is_missing=False)  # type: ignore[dict-item]
    each = values_reader({"x": kind}, empty_is_missing=False)
    alone = [each({"x": value}) for value in values]
    found = together({"x": values})
    if any(isinstance(one, str) for one in alone):
        assert isinstance(found, str), "one that cannot be kept"
    else:
        assert repr(found) == repr(([one[0] for one in alone],))
