"""What `forgeline down` ends, and what a server that was away grants before it starts again."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from infra.errors import UsageError
from infra.platform import grace, services

SLEEP = "import time; print('there', flush=True); time.sleep(600)"
STARTS_ANOTHER = (
    "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True,"
    " stdout=subprocess.PIPE).stdout.readline().decode(), flush=True); __import__('time').sleep(600)"
)


class Processes:
    def __init__(self) -> None:
        self.all: list[subprocess.Popen[str]] = []

    def start(self, code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, **environment},
        )  # fmt: skip
        self.all.append(process)
        assert process.stdout is not None and process.stdout.readline().strip() == "there"
        return process


@pytest.fixture
def processes() -> Iterator[Processes]:
    found = Processes()
    yield found
    for process in found.all:
        process.kill()
        process.wait()


def test_what_a_worker_ran_is_ended_in_whatever_session_and_nothing_else(tmp_path: Path, processes: Processes) -> None:
    run = processes.start(STARTS_ANOTHER, SLEEP, **services.mark(tmp_path, 4200))
    others = [
        processes.start(SLEEP, PREFECT_HOME=str(tmp_path)),
        processes.start(SLEEP, **services.mark(tmp_path, 4201)),
        processes.start(SLEEP, **services.mark(tmp_path / "elsewhere", 4200)),
    ]
    assert services.stop_runs(tmp_path, 4200) == 2, "the run, and its job in a session of its own"
    assert run.wait(10) is not None
    assert [other.poll() for other in others] == [None] * 3
    assert services.stop_runs(tmp_path, 4200) == 0


def test_a_service_lives_as_long_as_its_first_process(tmp_path: Path, processes: Processes) -> None:
    first = processes.start(STARTS_ANOTHER, SLEEP, PREFECT_HOME=str(tmp_path))
    service = services.Service(first.pid, datetime.now(UTC).timestamp() - 60, 4200)
    services.write(tmp_path, {"worker": service})
    assert services.read(tmp_path) == {"worker": service}
    assert services.lives(tmp_path, service)
    assert not services.lives(tmp_path / "elsewhere", service)
    first.kill()
    first.wait()
    assert not services.lives(tmp_path, service), "what it started works for nobody"


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    for text in ("", "[]", '{"server": 3}', '{"server": {"session": 1}}'):
        (tmp_path / services.RECORD).write_text(text)
        with pytest.raises(UsageError, match="damaged"):
            services.read(tmp_path)


NOW = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)


def written(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S.%f")


def test_what_ran_out_while_the_server_was_away_gets_its_time_again(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "prefect.db") as database:
        database.execute('CREATE TABLE automation (id CHAR(36), "trigger" JSON)')
        database.execute('CREATE TABLE automation_bucket (automation_id CHAR(36), "end" DATETIME)')
        for id, posture in (("dead", "Proactive"), ("look", "Reactive")):
            database.execute("INSERT INTO automation VALUES (?, ?)", (id, json.dumps({"posture": posture})))
        for id, end in (("dead", -30), ("dead", 3600), ("look", -30)):
            database.execute("INSERT INTO automation_bucket VALUES (?, ?)", (id, written(NOW + timedelta(seconds=end))))
    leases = tmp_path / grace.LEASES
    leases.mkdir()
    ends = {name: (NOW + timedelta(seconds=end)).isoformat() for name, end in (("over", -30), ("later", 3600))}
    for name, end in ends.items():
        (leases / f"{name}.json").write_text(json.dumps({"id": name, "expiration": end}))
    (leases / "expirations.json").write_text(json.dumps(ends))
    (leases / "torn.json").write_text("{")

    grace.grant(tmp_path, None, NOW)

    with sqlite3.connect(tmp_path / "prefect.db") as database:
        found = database.execute('SELECT automation_id, "end" FROM automation_bucket').fetchall()
    soon, later = written(NOW + timedelta(seconds=grace.SECONDS)), written(NOW + timedelta(hours=1))
    assert found == [("dead", soon), ("dead", later), ("look", written(NOW - timedelta(seconds=30)))]
    renewed = (NOW + timedelta(seconds=grace.LEASE_SECONDS)).isoformat()
    assert json.loads((leases / "over.json").read_text())["expiration"] == renewed
    assert json.loads((leases / "later.json").read_text())["expiration"] == ends["later"]
    assert json.loads((leases / "expirations.json").read_text()) == {"over": renewed, "later": ends["later"]}


def test_a_database_that_is_not_there_or_not_prefects_is_left_as_it_is(tmp_path: Path) -> None:
    grace.grant(tmp_path, None)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "prefect.db").write_bytes(b"something else")
    grace.grant(tmp_path, None)
    assert (tmp_path / "prefect.db").read_bytes() == b"something else"
