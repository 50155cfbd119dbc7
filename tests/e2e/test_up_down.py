"""`up` and `down` with a real Prefect server and worker on a free port."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from infra.errors import UsageError
from infra.platform import grace, prefect_server

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    prefect_server.down(tmp_path)


def sessions(home: Path) -> dict[str, int]:
    data = json.loads((prefect_server.prefect_home(home) / "services.json").read_text())
    return {name: service["session"] for name, service in data.items()}


def deployed_by_prefects_own_command(api: str) -> None:
    """`prefect deploy` takes `prefect.yaml`, and what it registers is the flow that `forgeline deploy` does."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PREFECT_API_URL": api}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with urllib.request.urlopen(f"{api}/deployments/name/forgeline/quickstart") as answer:
        found = json.load(answer)
    assert found["entrypoint"] == "flows.deployed.run_deployed" and found["work_pool_name"] == "forgeline"
    assert found["pull_steps"] == [{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}]
    assert found["parameters"] == {"file": "configs/quickstart.yaml"}
    assert {"file", "settings"} == set(found["parameter_openapi_schema"]["properties"])
    assert not any(schedule["active"] for schedule in found["schedules"])


def looked_at(home: Path) -> list[str]:
    """What `forgeline doctor` finds of the server: itself, its workers, its clock, late runs."""
    code = (
        "import pathlib, sys; from flows.checks import check, prefect_server\n"
        "found = check.examine(prefect_server.checks(pathlib.Path(sys.argv[1])))\n"
        "print('\\n'.join(result.finding.level for result in found))"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = [sys.executable, "-c", code, str(home)]
    return subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, check=True).stdout.split()


def killed(home: Path, service: str) -> psutil.Process:
    """The service is dead, and all it had started with it."""
    first = psutil.Process(sessions(home)[service])
    family = [first, *first.children(recursive=True)]
    for process in family:
        process.kill()
    psutil.wait_procs(family, timeout=10)
    return first


def started_again_where_it_was(home: Path, api: str) -> None:
    """A server that crashed; then one whose port somebody else has taken."""
    killed(home, "server")
    again = prefect_server.up(home)
    assert (again.started, again.api_url) == (("server",), api), "the worker looks for it there"
    database = prefect_server.prefect_home(home) / "prefect.db"
    assert database.exists() and grace.in_sqlite(database, datetime.now(UTC)) == "", "Prefect's tables are as they were"

    killed(home, "server")
    port = int(api.removesuffix("/api").rpartition(":")[2])
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(UsageError, match=r"not free.*The server was there before it ended"):
            prefect_server.up(home)
        worker = psutil.Process(sessions(home)["worker"])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            elsewhere = int(probe.getsockname()[1])
        moved = prefect_server.up(home, elsewhere)
        assert moved.started == ("server", "worker") and moved.api_url.endswith(f":{elsewhere}/api")
        assert not worker.is_running(), "it worked for an address where nobody is"


def test_up_is_idempotent_and_down_stops_just_those(home: Path, port: int) -> None:
    assert prefect_server.running(home) is None
    started = time.monotonic()
    first = prefect_server.up(home, port)
    sys.stdout.write(f"up took {time.monotonic() - started:.1f} s\n")
    assert first.started == ("server", "worker")
    assert prefect_server.running(home) == first.api_url == f"http://127.0.0.1:{port}/api"
    with urllib.request.urlopen(f"{first.api_url}/work_pools/forgeline") as answer:
        assert json.load(answer)["type"] == "process"
    with urllib.request.urlopen(f"{first.ui_url}/ui-settings") as answer:
        assert json.load(answer)["api_url"] == first.api_url, "the UI must ask the server it came from"
    listening = [c.laddr for c in psutil.Process(sessions(home)["server"]).net_connections() if c.status == "LISTEN"]
    assert listening and {address.ip for address in listening} == {"127.0.0.1"}

    again = prefect_server.up(home)
    assert again.started == () and "already running" in str(again) and again.api_url == first.api_url
    with pytest.raises(UsageError, match="runs at"):
        prefect_server.up(home, port + 1)

    deployed_by_prefects_own_command(first.api_url)
    assert looked_at(home) == ["ok"] * 6
    body = json.dumps({"name": "idle", "type": "process"}).encode()
    request = urllib.request.Request(f"{first.api_url}/work_pools/", body, {"Content-Type": "application/json"})
    urllib.request.urlopen(request).close()
    assert looked_at(home) == ["ok", "fault", "ok", "ok", "ok", "ok"], "a pool that nobody works for"

    worker = psutil.Process(sessions(home)["worker"])
    worker.kill()
    worker.wait(10)
    assert prefect_server.up(home).started == ("worker",)

    started_again_where_it_was(home, first.api_url)

    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        processes = [psutil.Process(pid) for pid in sessions(home).values()]
        processes += [child for process in processes for child in process.children(recursive=True)]
        assert prefect_server.down(home) == "stopped worker and server"
        assert not any(process.is_running() and process.status() != "zombie" for process in processes)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
    assert prefect_server.running(home) is None
    assert prefect_server.down(home) == "nothing was running"


def test_a_taken_port_is_named(home: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(UsageError, match=r"port \d+ is not free.*\n.*--port"):
            prefect_server.up(home, other.getsockname()[1])


def test_a_recycled_process_id_is_not_killed(home: Path) -> None:
    folder = prefect_server.prefect_home(home)
    folder.mkdir()
    environment = {**os.environ, "PREFECT_HOME": "/elsewhere"}
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    stranger = subprocess.Popen(command, start_new_session=True, env=environment)
    try:
        record = {"session": stranger.pid, "since": time.time() - 60, "port": 4200}
        (folder / "services.json").write_text(json.dumps({"server": record, "worker": record}))
        assert prefect_server.running(home) is None
        assert prefect_server.down(home) == "nothing was running"
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
