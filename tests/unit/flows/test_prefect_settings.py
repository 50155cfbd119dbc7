"""What is known of a Prefect server before Prefect is imported, and what of it never reaches the terminal."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flows import cli, prefect_settings
from infra.errors import StageError, TransientError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where no server is configured."""
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("FORGELINE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_a_server_watch_says_so_before_it_looks_at_anything(
    bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bare / "p.yaml").write_text(
        "name: p\nstages: {texts: {dataset: {sources: [{files: 'no/*.txt'}]}}}\ndeploy: {watch: {quiet: 1h}}\n"
    )
    assert cli.main(["watch", "p.yaml"]) == 3
    assert "there is no Prefect server to talk to" in capsys.readouterr().err
    assert not (bare / ".forgeline").exists(), "nor opens the store"


def test_a_server_that_is_named_anywhere_is_left_to_prefect(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageError, match="no Prefect server"):
        prefect_settings.require_server(bare)
    for name, text in (
        ("prefect/profiles.toml", 'active = "a"\n[profiles.a]\nPREFECT_API_URL = "http://x/api"\n'),
        ("prefect.toml", '[api]\nurl = "http://x/api"\n'),
        ("pyproject.toml", '[tool.prefect.api]\nurl = "http://x/api"\n'),
        (".env", "PREFECT_API_URL=http://x/api\n"),
    ):
        path = bare / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        prefect_settings.require_server(bare)
        path.unlink()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{server.getsockname()[1]}/api"
        monkeypatch.setenv("PREFECT_API_URL", url)
        with pytest.raises(TransientError, match="nobody listens"):
            prefect_settings.require_server(bare)
        server.listen()
        prefect_settings.require_server(bare)  # one that is slow to answer is not away


def test_neither_prefect_nor_its_temporary_server_writes_to_the_terminal(tmp_path: Path) -> None:
    code = """
import logging, pathlib, sys
from flows.prefect_settings import log_to_file
import flows.pipeline
log_to_file(pathlib.Path(sys.argv[1]))
from prefect.server.api import server
noise = "import os; os.write(1, b'out of the server\\\\n'); os.write(2, b'database is locked\\\\n')"
server.subprocess.Popen(args=[sys.executable, "-c", noise]).wait()
logging.getLogger("prefect._internal.concurrency").error("Service failed to process item")
logging.getLogger("asyncio").error("Task exception was never retrieved")
logging.getLogger("uvicorn.error").error("Exception in ASGI application")
"""
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "log")], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert (found.stdout, found.stderr) == ("", "")
    log = (tmp_path / "log").read_text()
    for said in ("out of the server", "database is locked", "failed to process item", "never retrieved", "ASGI"):
        assert said in log
