"""Hugging Face's `datasets` at both ends: what it saved is a source, and what a dataset stage made opens in one line."""

from __future__ import annotations

import io
import json
import re
import wave
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from infra.errors import StageError
from tasks.data.dataset.layout import describe
from tasks.data.dataset.split import read_split
from tasks.stage import InputArtifact, identity_params
from tasks.stages import dataset

datasets = pytest.importorskip("datasets")
COMMIT = "0123456789" * 4


def png(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (4, 3), shade).save(out, "PNG")
    return out.getvalue()


def wav() -> bytes:
    """Ten samples of silence."""
    out = io.BytesIO()
    with wave.open(out, "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(20))
    return out.getvalue()


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    datasets.disable_progress_bars()


def made(jobs: ModuleType, folder: Path, source: dict[str, Any], **more: Any) -> Any:
    previous = more.pop("previous", None)
    params = {"sources": [source], "split": {"by": "row", "validation": 0.0, "test": 0.0}, **more}
    job = jobs.make_job(folder, dataset.Params.model_validate(params), store=folder.parent / "store", previous=previous)
    job.version = dataset.STAGE.version
    job.metrics = dataset.run(job)
    jobs.collect(job)
    return job


def rows_of(job: Any, *columns: str) -> list[tuple[Any, ...]]:
    found = read_split(InputArtifact("d", job.output, None), "train", columns=columns)  # type: ignore[arg-type]
    return sorted(zip(*found.values(), strict=True))


def garments(count: int = 6) -> Any:
    """A dataset with a feature of each kind."""
    features = datasets.Features(
        {
            "n": datasets.Value("int64"),
            "kind": datasets.ClassLabel(names=["cat", "dog"]),
            "tags": datasets.List(datasets.ClassLabel(names=["old", "new"])),
            "photo": datasets.Image(),
            "en": datasets.Value("string"),
        }
    )
    rows = [
        {"n": i, "kind": i % 2, "tags": [1, i % 2], "photo": {"bytes": png(i), "path": None}, "en": f"e{i}"}
        for i in range(count)
    ]  # fmt: skip
    return datasets.Dataset.from_list(rows, features=features)


COLUMNS = {"n": "int32", "tags": "list<string>", "photo": "image"}
WANTED = [(i, ("cat", "dog")[i % 2], f"e{i}", ["new", ("old", "new")[i % 2]], png(i)) for i in range(6)]


def test_what_datasets_saved_is_read_as_its_features_say(jobs: ModuleType, tmp_path: Path) -> None:
    garments().save_to_disk(tmp_path / "saved")
    source = {"saved": str(tmp_path / "saved"), "text_column": "en", "columns": COLUMNS}
    job = made(jobs, tmp_path / "a", source, label={"from": "column:kind"})
    assert rows_of(job, "n", "label", "text", "tags", "photo") == WANTED
    (key,) = dataset.sources(job.params)
    assert key.path == "data-00000-of-00001.arrow", "its files are its identity"


def test_what_datasets_saved_needs_no_columns(jobs: ModuleType, tmp_path: Path) -> None:
    """The one ClassLabel is the label, names and all; the rest are columns, of the types that the features say."""
    garments().save_to_disk(tmp_path / "saved")
    job = made(jobs, tmp_path / "a", {"saved": str(tmp_path / "saved"), "text_column": "en"})
    assert rows_of(job, "n", "label", "text", "tags", "photo") == WANTED
    described = json.loads((job.output / "dataset.json").read_text())
    assert described["columns"] == ["id", "text", "group", "label", "n", "photo", "tags"]
    assert described["labels"] == ["cat", "dog"] and described["types"] == {"photo": "image", "tags": "list<string>"}
    assert opened(job)["train"].features["n"] == datasets.Value("int64") and job.warnings == []
    same = made(
        jobs,
        tmp_path / "b",
        {"saved": str(tmp_path / "saved"), "text_column": "en", "columns": {**COLUMNS, "n": "int64"}},
        label={"from": "column:kind"},
    )
    assert job.shared == same.shared, "written out they are the same, byte for byte"


def test_a_folder_of_several_splits_says_which_there_are(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": garments(), "dev": garments()}).save_to_disk(tmp_path / "saved")
    params = dataset.Params.model_validate({"sources": [{"saved": str(tmp_path / "saved")}]})
    with pytest.raises(StageError, match=r"It holds several splits: write \S+/saved/dev or \S+/saved/train\."):
        dataset.sources(params)


def test_every_kind_of_feature_has_a_type_or_is_named(jobs: ModuleType, tmp_path: Path) -> None:
    value = datasets.Value
    given: dict[str, tuple[Any, Any, Any]] = {  # feature, a value, what becomes of it
        "i8": (value("int8"), -3, -3),
        "u32": (value("uint32"), 1 << 31, 1 << 31),
        "f16": (value("float16"), 0.5, 0.5),
        "f64": (value("float64"), 0.1, 0.1),
        "yes": (value("bool"), True, True),
        "raw": (value("binary"), b"ab", b"ab"),
        "when": (value("timestamp[s]"), datetime(2026, 1, 2, 3), "2026-01-02T03:00:00"),
        "price": (value("decimal128(5, 2)"), Decimal("1.50"), "1.5"),
        "name": (value("large_string"), "n", "n"),
        "kind": (datasets.ClassLabel(names=["cat", "dog"]), 1, "dog"),
        "other": (datasets.ClassLabel(names=["x", "y"]), 0, "x"),
        "floats": (datasets.List(value("float32"), length=2), [0.5, 1.0], [0.5, 1.0]),
        "words": (datasets.LargeList(value("string")), ["a"], ["a"]),
        "classes": (datasets.List(datasets.ClassLabel(names=["x", "y"])), [1, 0], ["y", "x"]),
        "photo": (datasets.Image(), {"bytes": png(1), "path": None}, png(1)),
        "sound": (datasets.Audio(), {"bytes": wav(), "path": None}, wav()),
        "says": (datasets.Translation(["en", "de"]), {"en": "e", "de": "d"}, None),
        "big": (value("uint64"), 1, None),
        "place": ({"x": value("int8")}, {"x": 1}, None),
        "deep": (datasets.List(datasets.List(value("int32"))), [[1]], None),
        "group": (value("string"), "g", None),
        "id": (value("int64"), 7, None),
    }
    features = datasets.Features({name: feature for name, (feature, _, _) in given.items()})
    rows = [{name: one for name, (_, one, _) in given.items()}]
    (tmp_path / "saved").mkdir()
    file = tmp_path / "saved" / "data-00000-of-00001.arrow"  # by hand: encoding sounds needs torchcodec
    with pa.ipc.new_stream(str(file), features.arrow_schema) as stream:
        stream.write_table(pa.Table.from_pylist(rows, schema=features.arrow_schema))
    job = made(jobs, tmp_path / "a", {"saved": str(tmp_path / "saved")})
    expected = {name: wanted for name, (_, _, wanted) in given.items() if wanted is not None} | {"en": "e", "de": "d"}
    columns = sorted(expected)
    assert json.loads((job.output / "dataset.json").read_text())["columns"] == ["id", "text", "group", *columns]
    assert dict(zip(columns, rows_of(job, *columns)[0], strict=True)) == expected
    assert rows_of(job, "id", "text") == [("data-00000-of-00001.arrow#7", "")]
    texts, left = job.warnings
    assert "no feature is called 'text'" in texts and "`text_column` can be de or en or kind or name" in texts
    for said in ("big (uint64)", "place (a mapping)", "deep (a list of a list of int32)", "group (rows have a 'group'"):
        assert said in left
    assert "as `json` if need be" in left


def test_written_columns_win_and_null_is_none(jobs: ModuleType, tmp_path: Path) -> None:
    """Keys are those of before wherever `columns` is written; where it is not, the result and so the key is another."""
    garments().save_to_disk(tmp_path / "saved")
    source = {"saved": str(tmp_path / "saved"), "text_column": "en"}
    assert sorted(describe(made(jobs, tmp_path / "a", {**source, "columns": {"n": "int32"}}).output)["columns"]) == [
        "group", "id", "n", "text"
    ]  # fmt: skip
    assert describe(made(jobs, tmp_path / "b", {**source, "columns": None}).output)["columns"] == [
        "id",
        "text",
        "group",
    ]
    for columns in ({"n": "int32"}, None):
        params = dataset.Params.model_validate({"sources": [{**source, "columns": columns}]})
        assert "features" not in identity_params(params)["sources"][0]
    params = dataset.Params.model_validate({"sources": [source]})
    assert identity_params(params)["sources"][0]["features"] is True
    assert dataset.Params.model_validate(params.model_dump(mode="json")) == params, "a job gets it as it was"


@pytest.mark.parametrize(
    ("features", "more", "message"),
    [
        ({"place": {"x": "int8"}}, {}, r"no feature has a typed column: place \(a mapping\)(?s:.*)Write `columns`"),
        ({"n": "int8"}, {"dedup": {"near": {}}}, "looks at texts, and the rows have none(?s:.*)Write `columns`"),
    ],
)
def test_features_that_do_not_do(
    jobs: ModuleType, tmp_path: Path, features: Any, more: dict[str, Any], message: str
) -> None:
    def spelled(one: Any) -> Any:
        return {k: spelled(v) for k, v in one.items()} if isinstance(one, dict) else datasets.Value(one)

    made_of = datasets.Features(spelled(features))
    row = {name: {"x": 1} if isinstance(kind, dict) else 1 for name, kind in features.items()}
    datasets.Dataset.from_list([row], features=made_of).save_to_disk(tmp_path / "saved")
    with pytest.raises(StageError, match=message):
        made(jobs, tmp_path / "a", {"saved": str(tmp_path / "saved")}, **more)


def test_a_frozen_test_split_knows_the_columns_that_features_gave(jobs: ModuleType, tmp_path: Path) -> None:
    source = {"saved": str(tmp_path / "saved"), "text_column": "en"}
    split = {"by": "row", "validation": 0.0, "test": 0.3}
    garments(40).save_to_disk(tmp_path / "saved")
    before = made(jobs, tmp_path / "a", source, split=split)
    identity = {"version": dataset.STAGE.version, "params": identity_params(before.params)}
    last = jobs.stored(tmp_path / "store", before.output, "dataset").manifest
    last = replace(last, identity=identity)
    assert describe(made(jobs, tmp_path / "b", source, split=split, previous=last).output) == describe(before.output)
    garments(40).map(lambda row: {"n": row["n"] + 10}, load_from_cache_file=False).save_to_disk(tmp_path / "saved2")
    with pytest.raises(StageError, match="examples of the frozen test split would change or go"):
        made(jobs, tmp_path / "c", {**source, "saved": str(tmp_path / "saved2")}, split=split, previous=last)


def test_a_translation_is_a_column_for_each_language(jobs: ModuleType, tmp_path: Path) -> None:
    features = datasets.Features({"says": datasets.Translation(languages=["en", "de"])})
    rows = [{"says": {"en": f"e{i}", "de": f"d{i}"}} for i in range(4)]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
    source = {"saved": str(tmp_path / "saved"), "text_column": "en", "columns": {"de": "string"}}
    assert rows_of(made(jobs, tmp_path / "a", source), "text", "de") == [(f"e{i}", f"d{i}") for i in range(4)]
    with pytest.raises(StageError, match=r"no column 'says'(?s:.*)'en', 'de'"):
        made(jobs, tmp_path / "b", {**source, "text_column": "says"})


def test_a_split_of_a_hub_dataset_is_prepared_by_datasets(
    jobs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org").mkdir()
    garments().to_parquet(tmp_path / "org" / "train.parquet")
    load, asked = datasets.load_dataset_builder, []

    def from_folder(name: str, config: str | None, revision: str) -> Any:
        asked.append((name, config, revision))
        return load(str(tmp_path / "org"))

    monkeypatch.setattr(datasets, "load_dataset_builder", from_folder)
    source = {"dataset": "org/garments", "revision": COMMIT, "split": "train", "text_column": "en", "columns": COLUMNS}
    (key,) = dataset.sources(dataset.Params.model_validate({"sources": [source]}))
    assert COMMIT in key.path and asked == [], "a plan asks nobody"
    job = made(jobs, tmp_path / "a", source, label={"from": "column:kind"})
    assert asked == [("org/garments", None, COMMIT)]
    assert rows_of(job, "n", "label", "text", "tags", "photo") == WANTED
    with pytest.raises(StageError, match=r"org/garments has no split 'dev'(?s:.*)It has: train"):
        made(jobs, tmp_path / "b", {**source, "split": "dev"})


def test_a_hub_dataset_that_cannot_be_had_is_an_error_that_says_what_to_check(jobs: ModuleType, tmp_path: Path) -> None:
    source = {"dataset": "org/no-such-thing", "revision": COMMIT, "split": "train"}
    with pytest.raises(StageError, match=r"cannot get org/no-such-thing at 012345678901(?s:.*)HF_HUB_OFFLINE"):
        made(jobs, tmp_path / "a", source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"dataset": "org/name", "split": "train"}, "a commit"),
        ({"dataset": "org/name", "split": "train", "revision": "main"}, "revision"),
        ({"dataset": "org/name", "revision": COMMIT}, "and `split`"),
        ({"saved": "x", "split": "train"}, "go with `dataset`"),
        ({"saved": "x", "format": "csv"}, "is read by datasets"),
        ({"files": "x/*.arrow", "format": "datasets"}, "instead of `files`"),
    ],
)
def test_what_a_source_of_datasets_needs(source: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        dataset.Params.model_validate({"sources": [source]})


# --- the other way ----------------------------------------------------------------------------------------------------


def opened(job: Any) -> Any:
    """The dataset, by the very line that its card shows."""
    line = json.loads((job.records / "card.json").read_text())["opened_with"]
    assert line in (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    return eval(line.replace("FOLDER", str(job.output)), {"datasets": datasets})


def test_a_dataset_with_images_opens_in_one_line_with_its_features(jobs: ModuleType, tmp_path: Path) -> None:
    garments().save_to_disk(tmp_path / "saved")
    columns = {**COLUMNS, "n": "float32"}
    source = {"saved": str(tmp_path / "saved"), "text_column": "en", "columns": columns}
    job = made(jobs, tmp_path / "a", source, label={"from": "column:kind"})
    found = opened(job)["train"]
    assert found.features["label"] == datasets.ClassLabel(names=["cat", "dog"])
    assert found.features["photo"] == datasets.Image()
    assert found.features["tags"] == datasets.List(datasets.Value("string"))
    assert found.features["n"] == datasets.Value("float32")
    for row in found:
        assert row["photo"].size == (4, 3) and row["photo"].getpixel((0, 0)) == row["n"]
        assert found.features["label"].int2str(row["label"]) == WANTED[int(row["n"])][1]
    line = json.loads((job.records / "card.json").read_text())["opened_with"]
    assert line in (job.output / "README.md").read_text()


def test_a_dataset_of_texts_opens_in_one_line_and_is_as_it_was(jobs: ModuleType, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b"], "price": pa.array([1, 2], pa.int32())}), tmp_path / "goods.parquet")
    source = {"files": str(tmp_path / "goods.parquet"), "format": "parquet", "columns": {"price": "int32"}}
    job = made(jobs, tmp_path / "a", source)
    found = opened(job)["train"]
    assert sorted(zip(found["text"], found["price"], strict=True)) == [("a", 1), ("b", 2)]
    files = {re.sub(r"\w{16}", "X", path.relative_to(job.output).as_posix()) for path in job.output.rglob("*.*")}
    assert files == {"dataset.json", "train/X.parquet"}
    assert set(json.loads((job.output / "dataset.json").read_text())) == {"splits", "labels", "columns"}
