"""A hub source meets a hub, here on loopback: what `datasets` gets there, what the cache has, and what is said where
neither helps. In processes of their own, because the hub's address is read once."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("datasets")
ROOT = Path(__file__).parents[3]
COMMIT, LATER = "0123456789" * 4, "abcdef0123" * 4
CHILD = """
import json, sys
from pathlib import Path
from infra.errors import StageError
from tests.stages import jobs
from tasks.data.dataset.split import read_split
from tasks.stage import InputArtifact
from tasks.stages import dataset

folder, found = Path(sys.argv[1]), []
for number, source in enumerate(json.loads(sys.argv[2])):
    params = {"sources": [source], "split": {"by": "row", "validation": 0.0, "test": 0.0}}
    job = jobs.make_job(folder / str(number), dataset.Params.model_validate(params), store=folder / "store")
    job.version = dataset.STAGE.version
    try:
        dataset.run(job)
        jobs.collect(job)
        found.append(sorted(read_split(InputArtifact("d", job.output, None), "train", columns=["text"])["text"]))
    except StageError as error:
        assert not (job.output / "train").exists()
        found.append(str(error))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def hub_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hub", Path(__file__).with_name("hub.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parquet(folder: Path, *texts: str) -> bytes:
    pq.write_table(pa.table({"text": texts, "stars": list(range(len(texts)))}), folder / "x.parquet")
    return (folder / "x.parquet").read_bytes()


def source(name: str = "org/Garments", revision: str = COMMIT, **more: Any) -> dict[str, Any]:
    return {"dataset": name, "revision": revision, "split": "train", **more}


def read(folder: Path, home: Path, sources: list[dict[str, Any]], **environment: str) -> list[Any]:
    """What a dataset stage in another process reads of each source, or its error; `home` holds the hub's cache."""
    folder.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    given = {"HF_HOME": str(home), "FORGELINE_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), json.dumps(sources)],
        env=kept | given, cwd=folder, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def test_a_hub_source_gets_its_commit_from_the_hub_or_the_cache_and_never_another(
    hub_module: ModuleType, tmp_path: Path
) -> None:
    commits = {
        COMMIT: {"train.parquet": parquet(tmp_path, "old", "older")},
        LATER: {"train.parquet": parquet(tmp_path, "new")},
    }
    home, gone = tmp_path / "home", "f" * 40
    with hub_module.Hub({"org/Garments": commits, "org/gated": hub_module.GATED}) as hub:
        found = read(
            tmp_path / "online",
            home,
            [source(), source(split="dev"), source(revision=gone), source("org/gated"), source("org/none")],
            HF_ENDPOINT=hub.url,
        )
        assert any(line.startswith("GET") and line.endswith("train.parquet") for line in hub.asked)
        assert found[0] == ["old", "older"]
        for said, expected in zip(
            found[1:],
            (
                ("org/Garments has no split 'dev'", "It has: train"),
                ("at ffffffffffff: it has no such commit", "Copy the 40 digits"),
                ("it is gated, and HF_TOKEN is of nobody who may read it", "Ask for access"),
                ("it is not on the hub, or is private", "Check the name"),
            ),
            strict=True,
        ):
            assert all(part in said for part in expected), said
        hub.asked.clear()
        again = read(tmp_path / "again", home, [source()], HF_ENDPOINT=hub.url)
        assert again == [found[0]] and not any("Garments" in line for line in hub.asked), (
            "the cache has it: nobody is asked"
        )
        address = hub.url
    unreachable = "the hub cannot be reached, and the cache does not have it at this commit"
    wanted = [source(), source(revision=LATER), source(config="other"), source("org/gated")]
    for name, environment in (("offline", {"HF_HUB_OFFLINE": "1"}), ("down", {"HF_ENDPOINT": address})):
        found = read(tmp_path / name, home, wanted, **environment)
        assert found[0] == ["old", "older"]
        for said in found[1:]:
            assert unreachable in said and "HF_HUB_OFFLINE" in said, (name, said)
