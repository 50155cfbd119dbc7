"""Old flow runs leave Prefect's own database: that of a server that is down, by `gc`."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from flows.prefect_garbage import clean
from infra.platform import prefect_server
from infra.prefect_database import look

pytestmark = [pytest.mark.e2e, pytest.mark.soak, pytest.mark.timeout(600)]
DAY = 86400.0
RUNS = """
from prefect import flow
@flow
def one():
    pass
one(); one()
"""


def test_flow_runs_that_ended_long_ago_go_and_the_file_gets_smaller(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    folder = prefect_server.prefect_home(tmp_path)
    try:
        url = prefect_server.up(tmp_path, port).api_url
        env = {**os.environ, "PREFECT_API_URL": url, "PREFECT_HOME": str(tmp_path / "client")}
        subprocess.run([sys.executable, "-c", RUNS], env=env, check=True, timeout=120)
        assert clean(tmp_path, 30 * DAY) is None, "a server that runs does it itself"
    finally:
        prefect_server.down(tmp_path)
    with contextlib.closing(sqlite3.connect(folder / "prefect.db")) as database, database:
        database.execute(
            "UPDATE flow_run SET end_time = datetime('now', '-40 days') WHERE id = (SELECT min(id) FROM flow_run)"
        )
    before = look(folder, 30 * DAY)
    assert before is not None and (before.runs, before.old) == (2, 1)
    assert clean(tmp_path, 30 * DAY) is not None
    after = look(folder, 30 * DAY)
    assert after is not None and (after.runs, after.old) == (1, 0)
    assert clean(tmp_path, 30 * DAY) is None, "nothing is left to do"
