"""`forgeline prepare` as a user has it: parts made by two Dask workers, by workers that are killed, of a damaged file."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.open_store import open_store

pytestmark = pytest.mark.e2e
FILES = 4
PIPELINE = """
name: many
stages:
  corpus:
    dataset:
      sources: [{files: "data/*.jsonl", format: jsonl}]
      dedup: {near: {threshold: 0.8, num_perm: 16}}
      split: {by: row, validation: 0.1, test: 0.1}
"""


@dataclass
class Project:
    """A pipeline over files that are large enough for a batch for each of two workers, and the environment its commands run in."""

    file: Path
    home: Path
    environment: dict[str, str]

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "flows.cli", arguments[0], str(self.file), *arguments[1:]],
            env=self.environment | environment, cwd=self.home,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def command(self, *arguments: str, code: int = 0, **environment: str) -> tuple[dict[str, Any], str]:
        """(JSON of the last line, stderr) of a command that has to end with `code`."""
        return ended(self.start(*arguments, **environment), code)


def ended(process: subprocess.Popen[str], code: int = 0) -> tuple[dict[str, Any], str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err[-6000:]}"
    return json.loads(out.splitlines()[-1]) if out.strip() else {}, err


@pytest.fixture(scope="module")
def project(load: Any, tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("prepare")
    for name in ("data", "home"):
        (folder / name).mkdir()
    words = [f"{a}{b}" for a in ("orch", "harb", "found", "quarr") for b in ("ard", "our", "ry", "ies", "ing")]
    for i in range(FILES):
        with (folder / "data" / f"{i}.jsonl").open("w") as file:
            for k in range(1000):
                text = " ".join(f"{words[(k * j + i) % 20]}{k * j % 997}" for j in range(400))
                file.write(json.dumps({"text": f"{i} {k} {text}"}) + "\n")
    (folder / "pipeline.yaml").write_text(PIPELINE)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "FORGELINE_", "DASK_"))}
    own = {"FORGELINE_HOME": str(folder / "home"), "FORGELINE_CACHE": str(folder / "cache")}
    return Project(
        folder / "pipeline.yaml", folder / "home", {**kept, **own, "PYTHONPATH": str(load("e2e/chain.py").ROOT)}
    )


@pytest.fixture(scope="module")
def api(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server, so that not every command starts one."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"],
        env={**project.environment, "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect")), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}/api"
    try:
        wait_for(lambda: answers(f"{url}/health"))
        yield url
    finally:
        end([server])


@pytest.fixture(scope="module")
def workers(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[int]]]:
    """A Dask scheduler with two workers, each with a cache of its own; its address and their process ids."""
    folder, processes = tmp_path_factory.mktemp("dask"), []
    address = f"tcp://127.0.0.1:{free_port()}"
    local = ["--host", "127.0.0.1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0"]

    def start(*arguments: str, **environment: str) -> int:
        processes.append(
            subprocess.Popen(
                [sys.executable, "-P", "-m", "dask", *arguments, *local], env=project.environment | environment,
                cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
        )  # fmt: skip
        return processes[-1].pid

    try:
        start("scheduler", "--port", address.rpartition(":")[2])
        own = ["--nthreads", "1", "--no-nanny", "--local-directory"]
        pids = [
            start("worker", address, *own, str(folder / n), FORGELINE_CACHE=str(folder / n / "cache")) for n in "ab"
        ]
        wait_for(lambda: all((folder / n / "dask-scratch-space").exists() for n in "ab"))
        yield address, pids
    finally:
        end(processes)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(url, timeout=1).status == 200)
    except OSError:
        return False


def wait_for(condition: Any, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def end(processes: list[subprocess.Popen[Any]]) -> None:
    for process in processes:
        process.kill()
        process.wait()


def test_two_workers_make_what_a_run_then_finds(
    project: Project, api: str, workers: tuple[str, list[int]], tmp_path: Path
) -> None:
    address, pids = workers
    store, alone = str(tmp_path / "store"), str(tmp_path / "alone")
    run = ["run", "--no-report", "--quiet", "--json", "--store"]
    beside = project.start(*run, alone, PREFECT_API_URL=api)
    done, _ = project.command("prepare", "corpus", "--dask", address, "--store", store, "--json", PREFECT_API_URL=api)
    by = [f"{socket.gethostname()}:{pid}" for pid in sorted(pids)]
    assert done == {"stage": "corpus", "parts": FILES, "made": FILES, "reused": 0, "workers": sorted(by)}

    again, said = project.command("prepare", "corpus", "--workers", "1", "--store", store, "--json")
    assert (again["made"], again["reused"]) == (0, FILES) and not said, "nothing to do starts no server"

    after, _ = project.command(*run, store, PREFECT_API_URL=api)
    fresh, _ = ended(beside)
    (after,), (fresh,) = after["stages"], fresh["stages"]
    assert (after["metrics"]["shards_reused"], fresh["metrics"]["shards_reused"]) == (FILES, 0)
    assert after["artifact"] == fresh["artifact"], "the same key, the same bytes"
    prepared, without = ({m.key: m.digest for m in parts(folder)} for folder in (store, alone))
    assert prepared == without and len(prepared) == FILES


def test_a_damaged_file_gives_the_error_that_a_run_gives(
    project: Project, api: str, workers: tuple[str, list[int]], tmp_path: Path
) -> None:
    (tmp_path / "bad.parquet").write_text("no parquet")
    (tmp_path / "pipeline.yaml").write_text(
        PIPELINE.replace('"data/*.jsonl", format: jsonl', '"*.parquet", format: parquet')
    )
    bad = Project(tmp_path / "pipeline.yaml", project.home, project.environment)
    store = ["--store", str(tmp_path / "store")]
    beside = bad.start("prepare", "corpus", "--dask", workers[0], *store, PREFECT_API_URL=api)
    _, by_run = bad.command("run", "--no-report", "--quiet", *store, code=3, PREFECT_API_URL=api)
    _, said = ended(beside, 3)
    error = [line for line in said.splitlines() if "to make" not in line]
    assert error == by_run.splitlines()[: len(error)]
    assert error[0].startswith("forgeline: stage corpus: sources: bad.parquet: not a Parquet file")


def test_workers_killed_at_work_lose_nothing(project: Project, tmp_path: Path) -> None:
    store = tmp_path / "store"
    process = project.start("prepare", "corpus", "--workers", "2", "--store", str(store), "--json")
    wait_for(lambda: parts(str(store)) or process.poll() is not None)
    working = [c for c in psutil.Process(process.pid).children() if "spawn_main" in " ".join(c.cmdline())]
    for worker in working:
        worker.kill()
    left = FILES - len(parts(str(store)))
    done, _ = ended(process)
    assert len(working) == 2 and left > 0, "they had work under way"
    assert (done["made"], len(parts(str(store)))) == (FILES, FILES)
    assert not {f"{socket.gethostname()}:{worker.pid}" for worker in working} >= set(done["workers"])
    assert not list(project.home.glob("prepare-*")), "nothing of it stays"


def test_what_cannot_be_prepared_is_refused(project: Project, tmp_path: Path) -> None:
    store = ["--store", str(tmp_path / "store")]
    beside = project.start("prepare", "corpus", "--dask", f"tcp://127.0.0.1:{free_port()}", *store)
    _, said = project.command("prepare", "corpus", "--dask", "tcp://10.255.255.1:8786", *store, code=2)
    assert "could not reach the Prefect API" in said and "Set PREFECT_API_URL" in said
    _, said = ended(beside, 2)
    assert "no Dask scheduler answers" in said


def parts(store: str) -> list[Any]:
    """The prepared shards in a store."""
    opened = open_store(store)
    found = [opened.manifest("prepared", key) for key in opened.list("artifacts/prepared")]
    return [manifest for manifest in found if manifest is not None]
