"""What is known of a Prefect server before Prefect is imported, and what of it never reaches the terminal."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from flows import cli, prefect_settings
from infra.errors import StageError, TransientError
from infra.platform.temporary_server import TemporaryServer

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
from flows.prefect_settings import log_to_file, prefect_environment, wait_for_temporary
folder = pathlib.Path(sys.argv[1])
with prefect_environment(folder / "home", folder):
    import flows.pipeline
    log_to_file(folder / "log")
    wait_for_temporary()
    from prefect.client.orchestration import get_client
    assert get_client(sync_client=True).hello().status_code == 200
logging.getLogger("prefect._internal.concurrency").error("Service failed to process item")
logging.getLogger("asyncio").error("Task exception was never retrieved")
logging.getLogger("uvicorn.error").error("Exception in ASGI application")
"""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True, text=True, cwd=tmp_path, check=True, env={**kept, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
    )  # fmt: skip
    assert (found.stdout, found.stderr) == ("", "")
    log = (tmp_path / "log").read_text()
    for said in ("failed to process item", "never retrieved", "ASGI"):
        assert said in log


def test_a_temporary_server_ends_with_its_run_however_that_ends(tmp_path: Path) -> None:
    code = """
import os, pathlib, signal, sys
from infra.platform.temporary_server import TemporaryServer
server = TemporaryServer(pathlib.Path("log"))
print(server._process.pid, flush=True)
server.wait()
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == -9, done.stderr
    server = psutil.Process(int(done.stdout)) if psutil.pid_exists(int(done.stdout)) else None
    if server is not None:
        psutil.wait_procs([server], timeout=30)
    assert server is None or not server.is_running() or server.status() == psutil.STATUS_ZOMBIE


def test_a_temporary_server_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "sqlite+aiosqlite:////proc/no/such.db")
    server = TemporaryServer(tmp_path / "log")
    with pytest.raises(StageError, match=r"temporary Prefect server ended with exit code \d"):
        server.wait()
    server.close()
