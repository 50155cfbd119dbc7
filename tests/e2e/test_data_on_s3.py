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
from infra.errors import StoreError
from infra.open_store import open_store
from tasks.data.reading.found_files import find_files
from tasks.data.reading.sources import Source
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


def test_odd_names_in_a_bucket(bucket: tuple[s3fs.S3FileSystem, str], tmp_path: Path) -> None:
    """`::` in a key, a folder with brackets, markers of empty folders, and what other programs leave there."""
    system, url = bucket
    line = b'{"text": "hello"}\n'
    name, _, prefix = url.removeprefix("s3://").partition("/")
    for key, body in {
        "a::b.jsonl": line,
        "run[1]/c.jsonl": line,
        "run1/d.jsonl": line,
        "sub/": b"",
        "x_$folder$": b"",
        "_SUCCESS": b"",
        ".part.jsonl": line,
    }.items():
        system.call_s3("put_object", Bucket=name, Key=f"{prefix}/{key}", Body=body)

    def paths(files: str) -> list[str]:
        params = dataset.Params.model_validate({"sources": [{"files": files, "format": "jsonl"}]})
        return [file.path for file in dataset.sources(params)]

    assert paths(f"{url}/**") == ["a::b.jsonl", "run1/d.jsonl", "run[1]/c.jsonl"]
    assert paths(f"{url}/run[1]/*.jsonl") == ["c.jsonl"]
    (file,) = find_files([Source.model_validate({"files": f"{url}/a::b.jsonl", "format": "jsonl"})])
    with source_files.local_copy(file.place.location, tmp_path) as copy:
        assert copy.read_bytes() == line


def test_a_bucket_in_the_path_of_the_endpoint_is_named(
    bucket: tuple[s3fs.S3FileSystem, str], seaweed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, url = bucket
    for path in (seaweed.bucket, "s3"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"{seaweed.env['AWS_ENDPOINT_URL']}/{path}")
        s3fs.S3FileSystem.clear_instance_cache()
        said = rf"AWS_ENDPOINT_URL has a path, /{path}: "
        with pytest.raises(StoreError, match=said):
            find_files([Source.model_validate({"files": f"{url}/*.jsonl", "format": "jsonl"})])
        with pytest.raises(StoreError, match=said):
            open_store(f"s3://{seaweed.bucket}/store")
    s3fs.S3FileSystem.clear_instance_cache()
