"""A split opened once: values by row, whatever kind of file holds them, and nothing read that nobody asked for."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pyarrow as pa
import pytest

from infra.artifacts import Manifest
from infra.errors import StageError
from tasks.data.dataset.layout import iterate_columns, split_files
from tasks.data.dataset.row_files import writer
from tasks.data.dataset.rows import open_split
from tasks.data.dataset.split import read_split
from tasks.stage import InputArtifact

SCHEMA = pa.schema([("id", pa.string()), ("label", pa.string()), ("photo", pa.binary())])


def dataset(folder: Path, suffix: str, shards: list[list[bytes | None]]) -> InputArtifact:
    """A dataset with a split `train` whose shards hold these photos, and an empty split `test`."""
    (folder / "train").mkdir(parents=True)
    splits = {"train": sum(map(len, shards)), "test": 0}
    (folder / "dataset.json").write_text(json.dumps({"splits": splits, "labels": None, "columns": SCHEMA.names}))
    for number, photos in enumerate(shards):
        names = [f"{number}-{i}" for i in range(len(photos))]
        with writer(folder / "train" / f"{number}{suffix}", SCHEMA) as out:
            out.write_batch(pa.record_batch([names, ["cat"] * len(names), photos], schema=SCHEMA))
    return InputArtifact("goods", folder, cast(Manifest, None))


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_values_are_found_by_row_over_all_files(tmp_path: Path, suffix: str) -> None:
    photos: list[list[bytes | None]] = [[b"a", None, b"ccc"], [b"", b"\xff" * 9]]
    data = dataset(tmp_path, suffix, photos)
    rows = open_split(data, "train", ["photo", "id"])
    assert len(rows) == 5
    assert rows.column("id") == ["0-0", "0-1", "0-2", "1-0", "1-1"]
    assert [rows.value("photo", i) for i in range(5)] == [*photos[0], *photos[1]]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: rows.value("photo", i % 5), range(200))) == [*photos[0], *photos[1]] * 40
    with pytest.raises(IndexError):
        rows.value("photo", 5)
    assert read_split(data, "train", columns=("label", "photo")) == {
        "label": ["cat"] * 5,
        "photo": [*photos[0], *photos[1]],
    }
    batches = list(iterate_columns(split_files(tmp_path, "train"), ["photo"], 2))
    assert [batch["photo"] for batch in batches] == [[b"a", None], [b"ccc"], photos[1]]


def test_an_arrow_file_is_mapped_and_not_read(tmp_path: Path) -> None:
    data = dataset(tmp_path, ".arrow", [[b"\x01" * (1 << 20)] * 8])
    before = pa.total_allocated_bytes()
    rows = open_split(data, "train", ["id", "photo"])
    assert rows.value("photo", 3) == b"\x01" * (1 << 20)
    assert pa.total_allocated_bytes() - before < 1 << 20


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_what_is_not_there_is_named(tmp_path: Path, suffix: str) -> None:
    data = dataset(tmp_path, suffix, [[b"a"]])
    with pytest.raises(StageError, match="no split 'dev'") as missing:
        open_split(data, "dev", ["id"])
    assert missing.value.where == "goods"
    with pytest.raises(StageError, match="no column 'sound'") as column:
        open_split(data, "train", ["id", "sound"])
    assert "id, label, photo" in (column.value.hint or "")
    with pytest.raises(StageError, match="split 'test' is empty"):
        open_split(data, "test", ["sound"])
