"""The configs on tiny stand-ins of their data in the same layout: nothing is fetched.

Those of data are run; of those of objectives all is planned, and what they read is made.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import shutil
import struct
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from flows.cli import main
from infra.artifacts import ArtifactRef, Manifest
from infra.launch.local import LocalLauncher
from infra.open_store import open_store
from infra.store import Store
from tasks.data.dataset.layout import describe
from tasks.data.selection.decontamination import Overlap, runs
from tasks.pipeline.load import load_pipeline
from tasks.plan.plan import make_plan
from tasks.run.execute import execute_stage

pytestmark = pytest.mark.e2e
CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = ["stages.tokenizer.vocab_size=300"]


def write_mails(load: Any, folder: Path) -> None:
    """150 mails of English prose; one is in windows-1252, one in nothing."""
    from pydoc_data.topics import topics

    drawn = random.Random(5)
    paragraphs = [p for topic in topics.values() for p in topic.split("\n\n") if len(p) > 200]
    mails = []
    for kind in ("easy-ham-1", "easy-ham-2", "hard-ham-1", "spam-1", "spam-2"):
        for i in range(30):
            text = f"From: someone{i}@example.com\n\n" + "\n\n".join(drawn.sample(paragraphs, 3))
            mails.append((f"package/data/{kind}/{i:05}.{i:x}.txt", text.encode()))
    mails[0] = (mails[0][0], mails[0][1] + b"\ncaf\xe9\n")
    mails[-1] = (mails[-1][0], mails[-1][1] + b"\n\x81\n")
    (folder / "data/mails").mkdir(parents=True)
    load("../configs/fetch.py").write_mails(mails, folder / "data/mails")


def write_garments(load: Any, folder: Path) -> None:
    """600 images of 28 x 28 pixels, ten classes in turn."""
    pixels = np.random.default_rng(3).integers(0, 256, (300, 28, 28), np.uint8)
    members = []
    for number, part in enumerate(("train", "t10k")):
        images = struct.pack(">HBB3I", 0, 8, 3, 300, 28, 28) + (pixels + np.uint8(number)).tobytes()
        labels = struct.pack(">HBBI", 0, 8, 1, 300) + bytes(i % 10 for i in range(300))
        place = f"./usr/share/datasets/fashion-mnist/{part}"
        members += [(f"{place}-images-idx3-ubyte.gz", gzip.compress(images))]
        members += [(f"{place}-labels-idx1-ubyte.gz", gzip.compress(labels))]
    (folder / "data/fashion-mnist").mkdir(parents=True)
    load("../configs/fetch.py").write_fashion_mnist(members, folder / "data/fashion-mnist")


def write_library(load: Any, folder: Path) -> None:
    """A few files of each package that the config names."""
    library = Path(sysconfig.get_path("stdlib"))
    for package in ("asyncio", "email", "importlib", "json", "multiprocessing", "unittest", "xml/dom", "encodings"):
        (folder / "library" / package).mkdir(parents=True)
        for file in sorted((library / package).glob("*.py"))[-16:]:
            shutil.copy(file, folder / "library" / package)


STAND_INS: dict[str, Callable[[Any, Path], None]] = {
    "mails": write_mails,
    "fashion-mnist": write_garments,
    "stdlib": write_library,
}


CELLS = (
    "import json; from tests.bench.objectives import *; print(json.dumps({c: overrides(*c.split('/')) for c in CELLS}))"
)
NOT_SCORED = {"compress_frontier", "nightly"}
OBJECTIVES = sorted({file.stem for file in CONFIGS.glob("*.yaml")} - {*STAND_INS, "quickstart"})


def write_tasks(load: Any, folder: Path) -> None:
    """What the configs of objectives read: sentences, rated texts, names, tasks made of the library, a model's files."""
    from pydoc_data.topics import topics

    fetch = load("../configs/fetch.py")
    sentences = sorted({line for topic in topics.values() for line in topic.splitlines() if len(line.split()) > 8})
    for name in ("brown", "sentiment", "names", "python", "minilm"):
        (folder / "data" / name).mkdir(parents=True, exist_ok=True)
    tags = ["nn", "vb", "at", "jj", "in"] * 99
    tagged = "\n".join(" ".join(map("/".join, zip(s.split(), tags, strict=False))) for s in sentences)
    parts = [tagged[i : i + 4000].partition("\n")[2].rpartition("\n")[0] for i in range(0, 80_000, 4000)]
    fetch.write_brown([(f"package/ca{i:02}", part.encode()) for i, part in enumerate(parts)], folder / "data/brown")
    rated = io.BytesIO()
    with tarfile.open(fileobj=rated, mode="w:gz") as archive:
        for number, name in enumerate(fetch.RATED):
            lines = (f"{i}\t{i % 9 - 4}\t{s.strip()}\r\n" for i, s in enumerate(sentences[number::4]))
            content = "".join(lines).encode()
            member = tarfile.TarInfo(f"{name}_GroundTruth.txt")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    fetch.write_sentiment([("x/hutto_ICWSM_2014.tar.gz", rated.getvalue())], folder / "data/sentiment")
    fetch.write_rows(folder / "data/names/de.jsonl", [{"text": s, "target": s.upper()} for s in sentences[:200]])
    tasks = load("../configs/python_tasks.py")
    for name, rows in tasks.rows(folder / "library").items():
        fetch.write_rows(folder / "data/python" / f"{name}.jsonl", rows)
    (folder / "data/minilm/config.json").write_text("{}")
    (folder / "data/minilm/model.safetensors").touch()  # a plan hashes it, and looks no further


@pytest.fixture(scope="module")
def cells() -> dict[str, list[str]]:
    """The cells that `make objectives` runs, and the overrides of each."""
    done = subprocess.run([sys.executable, "-c", CELLS], cwd=CONFIGS.parent, capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def tasks(load: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_mails(load, folder)
    write_garments(load, folder)
    write_library(load, folder)
    write_tasks(load, folder)
    (folder / "configs").mkdir()
    return folder


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_config_of_an_objective_is_planned_and_reads_what_its_objective_needs(
    load: Any, name: str, cells: dict[str, list[str]], tasks: Path, launcher: LocalLauncher, monkeypatch: Any
) -> None:
    monkeypatch.setenv("FORGELINE_CACHE", str(tasks / "cache"))
    file = tasks / "configs" / f"{name}.yaml"
    file.write_text((CONFIGS / file.name).read_text().replace("${python:stdlib}", "../library"))
    families = [overrides for cell, overrides in cells.items() if cell.partition("/")[0] == name]
    assert families or name in NOT_SCORED, "`make objectives` runs it"
    for overrides in families or [[]]:
        pipeline = load_pipeline(file, overrides, str(tasks / "store"))
        lines = make_plan(pipeline, open_store(pipeline.store))
        assert {line.action for line in lines} <= {"run", "reuse", "unknown"}
    wanted = [node for node in pipeline.stages.values() if node.stage.kind == "dataset"]
    found = made(load, file, launcher, [node.name for node in wanted])
    teacher = next(node for node in pipeline.stages.values() if node.stage.kind == "finetune").params
    options = {"words", "tags", "question", "answers", "positive", "target", "messages", "image"}
    needed = {value for key, value in teacher.objective.model_dump().items() if key in options and value is not None}
    for node in wanted:
        columns = found.columns(node.name)
        assert node.name != teacher.data or needed <= set(columns), (needed, columns)
        assert found.rows(node.name, "train")


@pytest.fixture(params=STAND_INS)
def config(request: pytest.FixtureRequest, load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config beside its stand-in, as it lies beside its data."""
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FORGELINE_HOME", str(tmp_path / "home"))
    STAND_INS[request.param](load, tmp_path)
    file = tmp_path / "configs" / f"{request.param}.yaml"
    file.parent.mkdir()
    file.write_text((CONFIGS / file.name).read_text().replace("${python:stdlib}", "../library"))
    return file


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalLauncher]:
    started = LocalLauncher(tmp_path_factory.mktemp("servers"))
    yield started
    started.close()


@dataclass
class Made:
    """A pipeline that ran: its store, and what each stage made."""

    store: Store
    manifests: dict[str, Manifest]

    def rows(self, stage: str, split: str) -> list[dict[str, Any]]:
        folder = self.store.fetch(self.manifests[stage])
        return [row for file in sorted((folder / split).glob("*")) for row in pq.read_table(file).to_pylist()]

    def columns(self, stage: str) -> list[str]:
        return list(describe(self.store.fetch(self.manifests[stage]))["columns"])

    def counts(self, stage: str) -> dict[str, Any]:
        folder = self.store.fetch_records(self.manifests[stage])
        assert folder is not None
        found: dict[str, Any] = json.loads((folder / "counts.json").read_text())
        return found


def made(load: Any, file: Path, launcher: LocalLauncher, only: list[str] | None = None) -> Made:
    small = SMALL if "tokenizer: {data" in file.read_text() else []
    pipeline = load_pipeline(file, small, str(file.parent / "store"))
    store = open_store(pipeline.store)
    context = load("e2e/quiet_run.py").quiet_context(pipeline, store, launcher, file.parent / "jobs")
    references: dict[str, ArtifactRef] = {}
    manifests = {}
    for node in pipeline.stages.values():
        if only is not None and node.name not in only:
            continue
        manifests[node.name] = execute_stage(node, references, context).manifest
        references[node.name] = manifests[node.name].ref
    return Made(store, manifests)


def test_it_is_planned_and_runs(
    load: Any, config: Path, launcher: LocalLauncher, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(config), "--store", str(config.parent / "store"), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert {line["action"] for line in planned["stages"]} <= {"run", "unknown"}
    found = made(load, config, launcher)
    assert found.manifests.keys() == {line["name"] for line in planned["stages"]}
    {"mails": check_mails, "fashion-mnist": check_garments, "stdlib": check_library}[config.stem](found)


def check_mails(found: Made) -> None:
    counts = found.counts("mails")
    assert counts["steps"][0]["dropped"] == {"unreadable": 1}
    assert not counts["warnings"]
    assert {label: sum(of.values()) for label, of in counts["labels"].items()} == {"ham": 90, "spam": 59}
    texts = [row["text"] for split in ("train", "validation", "test") for row in found.rows("mails", split)]
    assert sum("café" in text for text in texts) == 1
    assert all("From: <EMAIL>" in text for text in texts)
    assert found.manifests["test_is_like_train"].metrics["drifted"] == 0
    assert found.manifests["tokens"].metrics["train_rows"] > 20


def check_garments(found: Made) -> None:
    counts = found.counts("garments")
    assert len(counts["labels"]) == 10
    assert all(of == {"train": 48, "validation": 6, "test": 6} for of in counts["labels"].values())
    train, test = found.rows("garments", "train"), found.rows("garments", "test")
    assert all(row["image"].startswith(b"\x89PNG") and row["text"] == "" for row in (*train, *test))
    assert {row["published_split"] for row in train} == {"train", "test"}
    few = [row for split in ("train", "validation") for row in found.rows("few", split)]
    assert {row["image"] for row in few} <= {row["image"] for row in train}
    assert found.rows("few", "validation") and not found.rows("few", "test")


def check_library(found: Made) -> None:
    tested, _ = runs([row["text"] for row in found.rows("functions", "test")], 13)
    train = [row["text"] for row in found.rows("corpus", "train")]
    assert train and Overlap(np.unique(tested), 13).shares(train).max() <= 0.02
    steps = {step["step"]: step for step in found.counts("corpus")["steps"]}
    assert steps["decontaminate"]["rows_out"] < steps["decontaminate"]["rows_in"]
    assert steps["weights"]["dropped"]["not drawn"] > 0
    assert found.manifests["tokens"].metrics["train_rows"] > 20
