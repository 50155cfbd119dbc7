"""What runs leave on a machine: counted, and removed once nobody uses it and it is old."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows import cli
from flows.checks.here import left_here
from infra.local_garbage import DAY, found, own, remove
from infra.prefect_database import look

COMMAND = ["gc", "--grace", "0"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FORGELINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FORGELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path / "home"


def folder(path: Path, days: float, *, pid: int | None = None, size: int = 1000) -> Path:
    (path / "stage/job").mkdir(parents=True)
    (path / "stage/job/log.txt").write_bytes(b"x" * size)
    if pid is not None:
        own(path)
        text = (path / "process.json").read_text()
        (path / "process.json").write_text(text.replace(f'"pid": {os.getpid()}', f'"pid": {pid}'))
    for inside in (*path.rglob("*"), path):
        os.utime(inside, (time.time() - days * DAY,) * 2)
    return path


def database(home: Path, ages: list[float], *, schema: str = "state_type TEXT, end_time TEXT") -> Path:
    """As Prefect's, as far as it is looked at. ages: of ended flow runs, in days."""
    path = home / "prefect/prefect.db"
    path.parent.mkdir(parents=True)
    connection = sqlite3.connect(path)
    connection.execute(f"CREATE TABLE flow_run ({schema})")
    for days in ages:
        at = datetime.now(UTC) - timedelta(days=days)
        connection.execute("INSERT INTO flow_run VALUES ('COMPLETED', ?)", (at.strftime("%Y-%m-%d %H:%M:%S.%f"),))
    connection.commit()
    connection.close()
    return path


def test_old_folders_of_runs_go_and_never_those_of_a_living_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = folder(home / "runs/1", 31, pid=2**22 + 1, size=2_000_000)
    living, young = folder(home / "runs/2", 31, pid=os.getpid()), folder(home / "runs/3", 29)
    unmarked, unsaved = folder(home / "runs/4", 31), folder(home / "runs/5", 31)
    (unsaved / "unsaved.json").write_text("{}")
    os.utime(unsaved, (1.0, 1.0))
    os.utime(unsaved / "unsaved.json", (1.0, 1.0))
    assert cli.main(COMMAND) == 0
    out = capsys.readouterr().out
    assert "on this machine        2 run folder                        2.00 MB" in out and "--delete" in out
    assert all(path.exists() for path in (old, living, young, unmarked)), "nothing is changed without --delete"
    assert cli.main([*COMMAND, "--delete"]) == 0
    assert [path.exists() for path in (old, living, young, unmarked)] == [False, True, True, False]
    assert unsaved.exists(), "the store did not take its record yet"
    assert cli.main([*COMMAND, "--delete", "--local", "10"]) == 0
    assert [path.exists() for path in (living, young)] == [True, False]


def test_scratch_of_killed_processes_goes_after_a_day(home: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "tmp"
    gone = [
        folder(scratch / "forgeline-checkpoint-a", 2, pid=2**22 + 1),
        folder(scratch / "forgeline-checkpoint-b", 2),
        folder(home / "doctor-x", 2),
    ]
    kept = [
        folder(scratch / "forgeline-checkpoint-c", 0.5),
        folder(scratch / "forgeline-checkpoint-d", 2, pid=os.getpid()),
        folder(scratch / "other", 99),
        folder(home / "reports", 99),
    ]
    (scratch / "forgeline-link").symlink_to(kept[2])
    assert {one.path for one in remove(home, 30 * DAY)} == {*gone}
    assert all(path.exists() for path in kept) and not any(path.exists() for path in gone)


def test_what_writes_last_counts_not_the_folder(home: Path) -> None:
    path = folder(home / "runs/1", 99)
    os.utime(path / "stage/job/log.txt")
    (one,) = found(home)
    assert one.age < 60 and not remove(home, 30 * DAY)


def test_doctor_counts_it(home: Path) -> None:
    folder(home / "runs/1", 31)
    folder(home / "runs/2", 1)
    database(home, [1, 40])
    finding = left_here(home)
    assert finding.level == "ok"
    assert finding.said.startswith(
        "2 run folders (0.0 MB); 0 scratch folders (0.0 MB); Prefect's database has 2 flow runs ("
    )
    assert finding.said.endswith("1 of the folders (0.0 MB) and 1 flow runs were not used any more for 30 days")


def test_a_database_that_cannot_be_read_is_its_size(home: Path) -> None:
    path = database(home, [], schema="x TEXT")
    shown = look(path.parent, 30 * DAY)
    assert shown is not None and (shown.runs, shown.old) == (0, 0) and shown.bytes == path.stat().st_size
    path.write_bytes(b"nothing" * 999)
    assert look(path.parent, 30 * DAY) is not None and look(home, 1.0) is None
