"""Hugging Face's `datasets` at both ends: what it saved is a source, and what a dataset stage made opens in one line."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from infra.errors import StageError
from tasks.data.dataset.split import read_split
from tasks.stage import InputArtifact
from tasks.stages import dataset

datasets = pytest.importorskip("datasets")
COMMIT = "0123456789" * 4


def png(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (4, 3), shade).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    datasets.disable_progress_bars()


def made(jobs: ModuleType, folder: Path, source: dict[str, Any], **more: Any) -> Any:
    params = {"sources": [source], "split": {"by": "row", "validation": 0.0, "test": 0.0}, **more}
    job = jobs.make_job(folder, dataset.Params.model_validate(params), store=folder.parent / "store")
    job.version = dataset.STAGE.version
    job.metrics = dataset.run(job)
    jobs.collect(job)
    return job


def rows_of(job: Any, *columns: str) -> list[tuple[Any, ...]]:
    found = read_split(InputArtifact("d", job.output, None), "train", columns=columns)  # type: ignore[arg-type]
    return sorted(zip(*found.values(), strict=True))


def garments() -> Any:
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
        for i in range(6)
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
    with pytest.raises(StageError, match=r"cannot get org/no-such-thing at 012345678901(?s:.*)HF_TOKEN"):
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
