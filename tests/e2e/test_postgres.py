"""`forgeline up --postgres`: what cannot work is said before anything starts; a run; Postgres goes away and comes back."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.platform import prefect_server

pytestmark = [pytest.mark.e2e, pytest.mark.soak, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
PIPELINE = """
name: words
stages:
  texts: {dataset: {sources: [{files: "*.txt"}]}}
"""


@pytest.fixture(scope="module")
def secret(load: Any) -> str:
    return load("e2e/canary.py").mark("postgres")


@pytest.fixture(scope="module")
def postgres(load: Any, secret: str) -> Iterator[Any]:
    server = load("e2e/postgres.py").Postgres(secret)
    server.start()
    try:
        yield server
    finally:
        server.close()


def test_a_server_on_postgres_and_without_it(load: Any, postgres: Any, secret: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    search = load("e2e/canary.py").Search({"password": secret})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "FORGELINE_"))}

    def forgeline(*arguments: str, code: int = 0, password: str = secret) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=200,
            env={**kept, "FORGELINE_HOME": str(home), "PYTHONPATH": str(ROOT), "PGPASSWORD": password},
        )  # fmt: skip
        search.look(f"output of {arguments}", (said := done.stdout + done.stderr).encode())
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{said[-5000:]}"
        return said

    def up(url: str, **how: Any) -> str:
        return forgeline("up", "--no-standby", "--port", port, "--postgres", url, **how)

    nobody = postgres.url.replace(f":{postgres.port}/", ":9/")
    assert "Postgres cannot be reached at 127.0.0.1:9" in up(nobody, code=3)
    assert "refused user 'forge'" in up(postgres.url, code=3, password="wrong")
    assert "there is no database 'prefect'" in up(postgres.url, code=3)
    assert not (home / "prefect" / "services.json").exists(), "nothing was started"

    postgres.make_database()
    try:
        assert postgres.url in up(postgres.url)
        assert "already running" in forgeline("up", "--no-standby")
        assert "keeps its data in postgresql://" in up(nobody, code=2)
        (tmp_path / "a.txt").write_text("a text")
        (tmp_path / "p.yaml").write_text(PIPELINE)
        forgeline("run", "p.yaml", "--quiet")

        search.look_at_arguments(psutil.process_iter())
        postgres.stop()
        away = findings(forgeline("doctor", "--json", code=3))
        assert away["prefect"]["level"] == "fault" and "its database does not" in away["prefect"]["said"]
        assert away["store"]["level"] == "ok" and away["prefect workers"]["mend"] == "Mend `prefect` first."
        postgres.start()
        assert findings(forgeline("doctor", "--json"))["prefect"]["level"] == "ok", "the server came back by itself"
    finally:
        prefect_server.down(home)
    search.look_into(home)
    assert search.found == set() and search.bytes > 10_000
    assert not list(home.rglob("prefect.db")), "the server used no SQLite"


def findings(said: str) -> dict[str, Any]:
    return {check["name"]: check for check in json.loads(said)["checks"]}
