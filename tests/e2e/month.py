"""A month in the life of a pipeline that keeps itself fresh, played in minutes: `make demo`, and `test_month.py`.

Real parts only: SeaweedFS, a Prefect server and worker started by `forgeline up`, the command line, processes that are
killed. Each day says what happens, waits until the platform has dealt with it, and checks what came of it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from infra import refs
from infra.platform import prefect_server
from infra.store import Store
from tasks.run_record import list_runs, read_run

ROOT = Path(__file__).parents[2]
PRODUCTION = "reviews/production"


class Month:
    """The house in which it is played: a folder, an S3 store, a Prefect server and a worker."""

    def __init__(self, folder: Path, seaweed: Any, reviews: Any, say: Callable[[str], None]) -> None:
        self.folder, self.reviews, self.say, self.began = folder, reviews, say, time.monotonic()
        self.home = folder / ".forgeline"
        self.url = seaweed.url("month")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.env = {
            **os.environ, **seaweed.env, "FORGELINE_STORE": self.url, "FORGELINE_HOME": str(self.home),
            "FORGELINE_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        self.env.pop("PREFECT_API_URL", None)
        self.store = Store.open(self.url)
        shutil.copy(Path(__file__).with_name("month.yaml"), folder / "reviews.yaml")
        reviews.write_corpus(folder)

    def day(self, number: int, what: str) -> None:
        self.say(f"[{time.monotonic() - self.began:5.0f} s] day {number:2}: {what}")

    def forgeline(self, *arguments: str, code: int = 0) -> str:
        """The command line; its stdout. AssertionError on another exit code, with what it said."""
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments],
            cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == code, (
            f"forgeline {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done.stdout

    def api(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        for attempt in range(4):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    content = answer.read()
                return json.loads(content) if content else None
            except TimeoutError:  # SQLite stalls for many seconds on a busy machine
                if attempt == 3 or (method != "GET" and not path.endswith("/filter")):
                    raise

    def runs(self, deployment: str = "run") -> list[dict[str, Any]]:
        """Flow runs of a deployment that have begun or ended, oldest first."""
        found = self.api("GET", f"/deployments/name/reviews/{deployment}")
        asked = {"deployments": {"id": {"any_": [found["id"]]}}, "sort": "EXPECTED_START_TIME_ASC", "limit": 200}
        return [run for run in self.api("POST", "/flow_runs/filter", asked) if run["state_type"] != "SCHEDULED"]

    def data_arrived(self, times: int = 1) -> None:
        """The one documented POST, as a data pipeline would send it."""
        events = [
            {
                "event": "dataset.updated",
                "occurred": datetime.now(UTC).isoformat(),
                "id": str(uuid.uuid4()),
                "resource": {"prefect.resource.id": "forgeline.pipeline.reviews"},
                "payload": {},
            }
            for _ in range(times)
        ]
        self.api("POST", "/events", events)

    def await_(self, what: str, holds: Callable[[], Any], seconds: float = 240.0) -> Any:
        """Wait until something holds; returns it. AssertionError with the workers' last words if it does not."""
        deadline = time.monotonic() + seconds
        while not (found := holds()):
            if time.monotonic() > deadline:
                log = (prefect_server.prefect_home(self.home) / "worker.log").read_text()[-4000:]
                raise AssertionError(f"{what}: not within {seconds:.0f} s\n{log}")
            time.sleep(1.0)
        return found

    def new_data_runs(self) -> list[dict[str, Any]]:
        return [run for run in self.runs() if "new data" in run["tags"]]

    def ended(self, count: int) -> list[dict[str, Any]]:
        """The runs that new data started, once there are `count` and all have ended."""

        def all_ended() -> list[dict[str, Any]]:
            found = self.new_data_runs()
            done = all(run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") for run in found)
            return found if len(found) >= count and done else []

        found = self.await_(f"{count} runs for new data", all_ended)
        assert len(found) == count, [(run["name"], run["state_name"]) for run in found]
        return found

    def looked(self, action: str, reason: str = "") -> dict[str, Any]:
        """The newest look that came to `action`."""
        before = len([run for run in self.runs("watch") if run["state_name"] == action.capitalize()])

        def newer() -> Any:
            found = [run for run in self.runs("watch") if run["state_name"] == action.capitalize()]
            return found[-1] if len(found) > before else None

        self.data_arrived()
        found = self.await_(f"a look that ends {action}", newer)
        message = self.api("GET", f"/flow_runs/{found['id']}")["state"]["message"]
        assert reason in message, message
        return dict(found)

    def champion(self) -> tuple[int, str]:
        """Entry number and digest of what is in production."""
        entry = refs.get(self.store, PRODUCTION)
        return (entry.number, entry.digest) if entry else (0, "")

    def trainings(self) -> int:
        """How many classifiers were ever trained."""
        runs = [read_run(self.store, name) for name in list_runs(self.store)]
        return sum(
            s["name"] == "classifier" and s["action"] in ("run", "resume") for run in runs for s in run["stages"]
        )

    def services(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((prefect_server.prefect_home(self.home) / "services.json").read_text())
        return found

    def worker(self, number: int) -> subprocess.Popen[bytes]:
        """One more worker of the pool."""
        command = ["worker", "start", "--pool", "forgeline", "--type", "process", "--name", f"other-{number}"]
        env = {
            **self.env,
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_HOME": str(self.folder / "w"),
        }
        with (self.folder / f"worker-{number}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "prefect", *command], cwd=self.folder, env=env, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def kill(self, service: str) -> None:
        """SIGKILL to a service and everything it started."""
        first = psutil.Process(self.services()[service]["session"])
        for process in [first, *first.children(recursive=True)]:
            process.send_signal(signal.SIGKILL)

    def up(self) -> str:
        return self.forgeline("up", "--port", str(self.port))

    def play(self) -> None:
        """The month. AssertionError on the first day that does not go as it should."""
        write = self.reviews.write_reviews
        self.day(1, "400 reviews are there; the platform is started and the pipeline deployed")
        write(self.folder, "base", 400, seed=1)
        self.up()
        told = self.forgeline("deploy", "reviews.yaml", "--dry-run")
        assert "+ deployment reviews/run" in told and "+ deployment reviews/watch" in told, told
        self.forgeline("deploy", "reviews.yaml")
        again = self.forgeline("deploy", "reviews.yaml", "--dry-run")
        assert all(line.startswith("= ") for line in again.splitlines()), again
        self.data_arrived()
        self.ended(1)
        first = self.champion()
        assert first[0] == 1, "the first model has no champion to beat, and ships"

        self.day(3, "the schedule fires: nothing is new, so nothing is done twice")
        self.await_("a run by schedule", lambda: [r for r in self.runs() if r["auto_scheduled"] and r["end_time"]], 400)
        assert self.trainings() == 1 and self.champion() == first

        self.day(6, "a file of duplicates arrives: no training")
        rows = (self.folder / "reviews/base.jsonl").read_text().splitlines()[:80]
        copied = "".join(line.replace('"base-', '"copy-') + "\n" for line in rows)
        (self.folder / "reviews/copies.jsonl").write_text(copied)
        self.looked("same")
        assert self.trainings() == 1

        self.day(9, "200 new reviews arrive, are said so a hundred times, four workers are there: one training")
        others = [self.worker(number) for number in range(3)]
        self.await_("four workers", lambda: len(self.api("POST", "/work_pools/forgeline/workers/filter", {})) >= 4)
        write(self.folder, "second", 200, seed=2)
        for _ in range(10):  # further apart than what the automation takes for one
            self.data_arrived(10)
            time.sleep(2)
        self.ended(2)
        for other in others:
            os.killpg(other.pid, signal.SIGKILL)  # asked politely, a worker waits for more than a minute
            other.wait(60)
        assert self.trainings() == 2

        self.day(12, "somebody tries a learning rate of 0.1 in the form of the UI: a worse challenger is refused")
        before = self.champion()
        refused = self.run_by_hand({"epochs": 1, "learning_rate": 0.1})
        assert refused["state_name"] == "Refused", refused["state"]
        assert self.champion() == before

        self.day(15, "reviews with words nobody had used before arrive: drift, a retrain, a better model is promoted")
        write(self.folder, "drifted", 300, seed=3, era="new")
        self.data_arrived()
        self.ended(3)
        promoted = self.champion()
        assert promoted[0] == before[0] + 1, "what learned the new words is better on them, and no worse on the old"

        self.day(18, "somebody does not like it: rolled back, and no later run undoes that")
        self.forgeline("rollback", PRODUCTION, "--reason", "the sales team wants the old one")
        rolled = self.champion()
        assert rolled[1] == before[1]
        assert self.run_by_hand({})["state_name"] == "Completed"
        assert self.champion() == rolled

        self.day(21, "new data; the worker and all it runs are killed in the middle of the training")
        write(self.folder, "third", 300, seed=4, era="new")
        self.data_arrived()
        self.await_("a training under way", self.training)
        self.kill("worker")
        killed = time.monotonic()
        self.up()
        crashed = lambda: [r for r in self.new_data_runs() if r["state_type"] == "CRASHED"]  # noqa: E731
        self.await_("the dead run marked Crashed", crashed, 120)
        self.say(f"        the dead run was marked Crashed {time.monotonic() - killed:.0f} s after the kill")
        self.data_arrived()
        runs = self.ended(5)
        assert [run["state_type"] for run in runs][-2:] == ["CRASHED", "COMPLETED"]

        self.day(25, "new data; the server is killed in the middle of the training and comes back: nothing stops")
        write(self.folder, "fourth", 300, seed=5, era="new")
        self.data_arrived()
        self.await_("a training under way", self.training)
        self.kill("server")
        self.up()
        self.ended(6)

        self.day(30, "the books are closed")
        self.close()

    def run_by_hand(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The flow run of somebody who filled in the form and pressed the button, once it has ended."""
        run = self.api("GET", "/deployments/name/reviews/run")
        form = {"parameters": {**run["parameters"], "settings": {**run["parameters"]["settings"], **settings}}}
        made = self.api("POST", f"/deployments/{run['id']}/create_flow_run", form)["id"]
        ended = lambda: (found := self.api("GET", f"/flow_runs/{made}"))["end_time"] and found  # noqa: E731
        return dict(self.await_("the end of a run by hand", ended))

    def training(self) -> bool:
        """Whether a classifier is being trained now."""
        files = list((self.home / "runs").glob("*/classifier/*/events.jsonl"))
        return any(time.time() - file.stat().st_mtime < 2 for file in files)

    def close(self) -> None:
        """At the end the store, the UI's states and the ledger agree."""
        records = [read_run(self.store, name) for name in list_runs(self.store)]
        for flow_run in self.runs():
            mine = [record for record in records if record.get("flow_run") == flow_run["id"]]
            wanted = {"COMPLETED": {"ok", "refused"}, "CRASHED": {"running"}, "FAILED": {"failed", "interrupted"}}
            assert {record["status"] for record in mine} <= wanted[flow_run["state_type"]], flow_run["name"]
        for record in records:
            if record["status"] != "running":
                ledger = record["ledger"]
                spent = sum(ledger["buckets"].values())
                assert abs(spent - record["seconds"]) <= max(0.01 * record["seconds"], 0.05), ledger
        moves = list(reversed(refs.history(self.store, PRODUCTION)))
        assert [move.number for move in moves] == list(range(1, len(moves) + 1))
        for move in moves:
            self.say(f"        {PRODUCTION} {move.number}: {move.digest[:12]}  {move.note}")
        for manifest in (self.store.manifest(move.kind, move.key) for move in moves):
            assert manifest is not None
            self.store.fetch(manifest)
