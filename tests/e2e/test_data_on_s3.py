"""Data that lies in a bucket: listed, hashed once, prepared shard by shard, and noticed when it changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from infra import source_files
from tasks.stages import dataset

pytestmark = pytest.mark.e2e


@pytest.fixture
def bucket(seaweed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[s3fs.S3FileSystem, str]]:
    for name, value in seaweed.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))
    yield s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False), seaweed.url("raw")


def test_a_dataset_from_a_bucket(
    load: Any, bucket: tuple[s3fs.S3FileSystem, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = load("stages/jobs.py")
    system, url = bucket
    lines = "".join(json.dumps({"text": f"text number {k}", "y": "ab"[k % 2]}) + "\n" for k in range(200)).encode()
    system.pipe(f"{url}/2025/a.jsonl.zst", pa.compress(lines, codec="zstd", asbytes=True))
    table = pa.table({"text": [f"row number {k}" for k in range(100)], "y": ["a"] * 100})
    pq.write_table(table, tmp_path / "b.parquet")
    system.put(str(tmp_path / "b.parquet"), f"{url}/2026/b.parquet")
    params = dataset.Params.model_validate(
        {
            "sources": [
                {"files": f"{url}/**/*.jsonl.zst", "format": "jsonl"},
                {"files": f"{url}/2026/*.parquet", "format": "parquet"},
            ],
            "label": {"from": "column:y"},
            "split": {"by": "row"},
        }
    )
    read: list[str] = []
    plain = source_files._digest
    monkeypatch.setattr(source_files, "_digest", lambda file: read.append(file.location) or plain(file))
    first = dataset.sources(params)
    assert [file.path.split()[0] for file in first] == ["2025/a.jsonl.zst", "b.parquet"] and len(read) == 2
    assert dataset.sources(params) == first and len(read) == 2, "an ETag that stands is not read again"
    job = jobs.make_job(tmp_path / "job", params)
    metrics = dataset.run(job)
    assert metrics["rows"] == 300 and metrics["shards"] == 2
    system.pipe(f"{url}/2025/a.jsonl.zst", pa.compress(lines + lines[:50], codec="zstd", asbytes=True))
    assert dataset.sources(params) != first and len(read) == 3
