"""Names that a dataset stage is given and its data have not, splits that stay empty, and names in two spellings."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.artifacts import Manifest
from infra.errors import StageError
from infra.open_store import open_store
from tasks.stages import dataset

Make = Callable[..., Any]


@pytest.fixture
def make(tmp_path: Path, load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Make:
    """make(sources, ...params, against=artifact): the dataset stage run; its job, with `counts`."""
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))
    jobs, folders = load("stages/jobs.py"), iter(range(100))

    def made(source: dict[str, Any], *, inputs: dict[str, Any] | None = None, **params: Any) -> Any:
        split = {"by": "row", "validation": 0, "test": 0, **params.pop("split", {})}
        sources = [source, *params.pop("more", [])]
        checked = dataset.Params.model_validate({"sources": sources, "split": split, **params})
        job = jobs.make_job(tmp_path / f"{next(folders)}", checked, inputs, store=tmp_path / "store")
        dataset.run(job)
        job.counts = json.loads((job.records / "counts.json").read_text())
        return job

    return made


def jsonl(path: Path, rows: Sequence[Any]) -> dict[str, Any]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"files": str(path), "format": "jsonl"}


def parquet(path: Path, **columns: Any) -> dict[str, Any]:
    pq.write_table(pa.table(columns), path)
    return {"files": str(path), "format": "parquet"}


def rows_of(job: Any) -> list[dict[str, Any]]:
    files = [job.fetch_shared(entry.path) for entry in job.shared]
    return [row for file in files for row in pq.read_table(file).to_pylist()]


ROWS = [{"text": f"row {i}", "kind": "ab"[i % 2], "brand": f"b{i % 20}", "n": i} for i in range(60)]


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"split": {"by": "column:brnad", "test": 0.3}}, "split.by"),
        ({"source": {"id_column": "brnad"}}, "sources[0].id_column"),
        ({"label": {"from": "column:brnad"}}, "label.from"),
        ({"source": {"columns": {"brnad": "string"}}}, "sources[0].columns"),
        ({"source": {"template": "{brnad}"}}, "sources[0]"),
        ({"source": {"text_column": "brnad"}}, "sources[0].text_column"),
        ({"source": {"messages_column": "brnad"}}, "sources[0].messages_column"),
    ],
)
def test_a_column_that_no_row_has(tmp_path: Path, make: Make, given: dict[str, Any], where: str) -> None:
    source = {**jsonl(tmp_path / "rows.jsonl", ROWS), **given.pop("source", {})}
    with pytest.raises(StageError) as caught:
        make(source, **given)
    error = caught.value
    assert error.where == where
    assert "no row of sources[0]" in error.what and "rows.jsonl" in error.what and "'brnad'" in error.what
    assert error.hint == "Did you mean 'brand'? Its columns: 'brand', 'kind', 'n', 'text'."


def test_a_column_that_some_rows_of_a_source_have_is_missing_in_the_others(tmp_path: Path, make: Make) -> None:
    jsonl(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two"}])
    jsonl(tmp_path / "b.jsonl", [{"text": "three"}, {"text": "four", "name": "x", "size": 3}])
    (tmp_path / "empty.jsonl").write_text("")
    source = {"files": str(tmp_path / "*.jsonl"), "format": "jsonl", "id_column": "name", "columns": {"size": "int32"}}
    made = rows_of(make(source))
    assert {row["text"]: row["size"] for row in made} == {"one": None, "two": None, "three": None, "four": 3}
    assert [row["id"] for row in made if row["text"] == "four"] == ["b.jsonl#x"]
    only_there = {"files": str(tmp_path / "a.jsonl"), "format": "jsonl", "id_column": "name"}
    with pytest.raises(StageError, match="no row of sources\\[0\\]"):
        make(only_there)


@pytest.mark.parametrize("format", ["text", "lines"])
@pytest.mark.parametrize(
    "given",
    [
        {"split": {"by": "column:kind"}},
        {"label": {"from": "column:kind"}},
        {"sources": [{"files": "a.txt", "id_column": "kind"}]},
    ],
)
def test_a_format_without_columns_is_told_so_before_anything_runs(format: str, given: dict[str, Any]) -> None:
    params: dict[str, Any] = {"sources": [{"files": "a.txt"}], **given}
    params["sources"][0]["format"] = format
    with pytest.raises(ValueError, match=f"no column 'kind' in sources\\[0\\], of format {format}"):
        dataset.Params.model_validate(params)


def as_input(job: Any, tmp_path: Path, stage: str, split: str | None = None) -> dict[str, Any]:
    """The dataset a job made, as what another decontaminates against."""
    from tasks.stage import InputArtifact

    manifest: Manifest = open_store(str(tmp_path / "store")).commit(
        kind="dataset", type="dataset", key=stage[0] * 64, attempt="a", payload_dir=job.output, shared=job.shared,
        identity={"stage": stage},
    )  # fmt: skip
    return {"decontaminate.against": [InputArtifact(stage, Path(os.devnull), manifest, split)]}


def test_a_benchmark_that_holds_nothing_out_counts_as_a_whole(tmp_path: Path, make: Make) -> None:
    exam = make(jsonl(tmp_path / "exam.jsonl", [{"text": f"question number {i} of the known exam"} for i in range(9)]))
    shown = {"text": "They say: question number 3 of the known exam, and more"}
    source = jsonl(tmp_path / "rows.jsonl", [*ROWS, shown])
    settings = {"decontaminate": {"against": ["exam"], "ngram": 5}}
    job = make(source, inputs=as_input(exam, tmp_path, "exam"), **settings)
    assert job.counts["steps"][-1]["dropped"] == {"decontaminate": 1}
    assert ["all rows of exam are in train" in warning for warning in job.warnings] == [True]
    assert len(rows_of(job)) == len(ROWS)

    with pytest.raises(StageError, match=r"exam\.test has no row"):
        make(source, inputs=as_input(exam, tmp_path, "exam", "test"), **settings)


def test_splits_that_stay_empty_are_told(tmp_path: Path, make: Make) -> None:
    source = jsonl(tmp_path / "rows.jsonl", ROWS)
    for by, said in (("file", "keeps each file whole, and there is one"), ("column:one", "same value in every row")):
        given = {**source} if by == "file" else jsonl(tmp_path / "one.jsonl", [{**row, "one": 1} for row in ROWS])
        (warning,) = make(given, split={"by": by, "validation": 0.1, "test": 0.2, "seed": 1}).warnings
        assert "validation (10% asked for) and test (20% asked for) are empty" in warning
        assert "All 60 rows are in one split" in warning and said in warning and "`by: row`" in warning
    assert make(source, split={"validation": 0.2, "test": 0.2}).warnings == []
    (warning,) = make(source, split={"validation": 0.001}).warnings
    assert "validation (0.1% asked for) is empty" in warning and "another `split.seed`" in warning


def test_one_table_by_file_that_falls_into_the_test_split(tmp_path: Path, make: Make) -> None:
    with pytest.raises(StageError, match=r"(?s)no training example is left.*keeps each file whole.*`by: row`"):
        make(jsonl(tmp_path / "rows.jsonl", ROWS), split={"by": "file", "test": 0.99})


def test_one_class_in_two_types_and_forms(tmp_path: Path, make: Make) -> None:
    parquet(tmp_path / "a.parquet", text=[f"a{i}" for i in range(20)], y=pa.array([0, 1] * 10, pa.int64()))
    floats = pa.array([0.0, 1.0, float("nan"), None] * 5, pa.float64())
    source = parquet(tmp_path / "b.parquet", text=[f"b{i}" for i in range(20)], y=floats)
    job = make({**source, "files": str(tmp_path / "*.parquet")}, label={"from": "column:y"})
    assert {name: of["train"] for name, of in job.counts["labels"].items()} == {"0": 15, "1": 15}
    label = next(step for step in job.counts["steps"] if step["step"] == "label")
    assert label["dropped"] == {"no label": 10} and job.warnings == []

    forms = [{"text": f"t{i}", "y": ("caf\u00e9", "cafe\u0301", "th\u00e9", "Th\u00e9")[i % 4]} for i in range(20)]
    job = make(jsonl(tmp_path / "forms.jsonl", forms), label={"from": "column:y"})
    assert set(job.counts["labels"]) == {"caf\u00e9", "th\u00e9", "Th\u00e9"}
    (warning,) = job.warnings
    assert "'Th\u00e9', 'th\u00e9' differ in spelling alone" in warning


def test_a_user_with_an_id_in_two_types_is_in_one_split(tmp_path: Path, make: Make) -> None:
    given: list[Any] = [*range(30), *map(float, range(30)), *map(str, range(30)), *(f"{i}.0" for i in range(30))]
    source = jsonl(tmp_path / "rows.jsonl", [{"text": f"t{i}", "user": user} for i, user in enumerate(given)])
    job = make(source, split={"by": "column:user", "validation": 0.3, "test": 0.3})
    splits: dict[str, set[str]] = {}
    for entry in job.shared:
        for row in pq.read_table(job.fetch_shared(entry.path)).to_pylist():
            splits.setdefault(row["group"], set()).add(entry.path.partition("/")[0])
    assert len(splits) == 30 and all(len(of) == 1 for of in splits.values())
    assert {name for of in splits.values() for name in of} == {"train", "validation", "test"}


def test_dates_timestamps_decimals_and_uuids_are_labels_groups_ids_and_texts(tmp_path: Path, make: Make) -> None:
    from decimal import Decimal
    from uuid import UUID

    count = 10
    source = parquet(
        tmp_path / "a.parquet",
        text=[f"t{i}" for i in range(count)],
        day=pa.array([date(2024, 1, 1 + i % 2) for i in range(count)]),
        when=pa.array([1_700_000_000_000_000_001 + i for i in range(count)], pa.timestamp("ns")),
        price=pa.array([Decimal("1.50") + i for i in range(count)], pa.decimal128(9, 2)),
        key=pa.array([UUID(int=i + (0xFF << 120)).bytes for i in range(count)], pa.binary(16)),
    )
    shown = {**source, "id_column": "key", "template": "At {when} for {price}, {key}: {text}"}
    first = rows_of(make(shown, split={"by": "column:when"}, label={"from": "column:day"}))[0]
    name = "ff000000-0000-0000-0000-000000000000"
    assert first["id"] == f"a.parquet#{name}"
    assert (first["group"], first["label"]) == ("2023-11-14T22:13:20.000000001", "2024-01-01")
    assert first["text"] == f"At 2023-11-14T22:13:20.000000001 for 1.50, {name}: t0"


def test_a_list_is_no_label_and_its_row_is_set_aside(tmp_path: Path, make: Make) -> None:
    good = [{"text": f"t{i}", "y": i % 2} for i in range(10)]
    source = jsonl(tmp_path / "rows.jsonl", [*good, {"text": "x", "y": ["a"]}, {"text": "y", "y": {"a": 1}}])
    job = make(source, label={"from": "column:y"}, max_bad_share=0.5)
    reasons = [json.loads(line)["reason"] for line in (job.records / "quarantine.jsonl").read_text().splitlines()]
    assert reasons == [f"column 'y' holds a {kind}, which is no label" for kind in ("list", "mapping")]


def test_sets_of_labels_and_tags_are_spelled_as_labels_are(tmp_path: Path, load: Callable[[str], Any]) -> None:
    from tasks.objectives.shared.targets import label_sets
    from tasks.objectives.text.inputs.tagged_words import read_tagged

    topics = ["caf\u00e9", "cafe\u0301", " ", "1.0"]
    row = {"id": "a", "topics": json.dumps(topics), "words": '["x", "cafe\u0301"]', "tags": '["B-cafe\u0301", 3]'}
    (tmp_path / "train").mkdir()
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "train" / "a.parquet")
    (tmp_path / "dataset.json").write_text(json.dumps({"splits": {"train": 1}, "labels": None, "columns": list(row)}))
    data = load("stages/jobs.py").artifact(tmp_path, "dataset")
    assert label_sets(data, "train", "topics") == [["caf\u00e9", "1"]]
    (tagged,) = read_tagged(data, "train", "words", "tags")
    assert (tagged.words, tagged.tags) == (["x", "cafe\u0301"], ["B-caf\u00e9", "3"])


def test_the_labels_of_models_made_before_are_spelled_as_data_are_now(tmp_path: Path) -> None:
    from tasks.models.card import ModelCard, read_card, write_card

    for labels, read in ((["0.0", "cafe\u0301"], ["0", "caf\u00e9"]), (["1", "1.0"], ["1", "1.0"]), (None, None)):
        write_card(tmp_path, ModelCard(None, 8, labels))
        assert read_card(tmp_path).labels == read
