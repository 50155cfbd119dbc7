"""The first stages of a run begin before Prefect is there, and its UI shows all of them with their own times."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.open_store import open_store
from tasks.run.record import read_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def two_stages(chain: Any, folder: Path) -> Path:
    file: Path = chain.write_project(folder / "project")
    data = yaml.safe_load(file.read_text())
    data["stages"] = {name: data["stages"][name] for name in ("corpus", "tokenizer")}
    file.write_text(yaml.safe_dump(data))
    return file


def asked(api: str, what: str, question: dict[str, Any]) -> Any:
    data, headers = json.dumps(question).encode(), {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{api}/{what}/filter", data, headers)) as answer:
        return json.load(answer)


def test_the_ui_shows_every_stage_with_its_own_times(load: Any, api: str, tmp_path: Path) -> None:
    chain = load("e2e/chain.py")
    file, store = two_stages(chain, tmp_path), str(tmp_path / "store")
    chain.Forgeline(file, store, tmp_path / "home", PREFECT_API_URL=api).end().must(0)
    record = read_run(open_store(store), "latest")
    of = {"flow_runs": {"id": {"any_": [record["flow_run"]]}}}
    (flow_run,) = asked(api, "flow_runs", of)
    assert flow_run["state_type"] == "COMPLETED" and flow_run["name"] == record["run"]
    deadline = time.monotonic() + 60  # the server writes down what became of tasks a moment later
    while not _ended(runs := asked(api, "task_runs", of)):
        assert time.monotonic() < deadline, runs
        time.sleep(0.2)
    shown = {run["name"]: run for run in runs}
    assert set(shown) == {"corpus (dataset)", "tokenizer (tokenizer)"}
    first, second = shown["corpus (dataset)"], shown["tokenizer (tokenizer)"]
    assert first["start_time"] < flow_run["start_time"], "it did not wait for Prefect"
    assert first["start_time"] < first["end_time"] <= second["start_time"] < second["end_time"]
    assert [run["run_count"] for run in (first, second)] == [1, 1]


def _ended(runs: list[Any]) -> bool:
    return len(runs) == 2 and all(run["state_type"] == "COMPLETED" for run in runs)


def test_a_server_that_is_not_there_is_the_error_and_ends_the_run(load: Any, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}/api"
    chain = load("e2e/chain.py")
    file, store = two_stages(chain, tmp_path), str(tmp_path / "store")
    away = {"PREFECT_API_URL": nobody, "PREFECT_CLIENT_MAX_RETRIES": "0"}
    run = chain.Forgeline(file, store, tmp_path / "home", **away)
    said = run.end().must(3).stderr
    assert "Prefect could not begin the flow run" in said and nobody in said
    assert read_run(open_store(store), "latest")["status"] == "failed"
    assert not run.processes()
