"""A month in the life of a pipeline that keeps itself fresh, played in minutes: `make demo`, and `test_month.py`.

Real parts only: SeaweedFS, a Prefect server and worker started by `forgeline up`, the command line, processes that are
killed. Each day says what happens, waits until the platform has dealt with it, and checks what came of it.

What is waited for is a run by its id, or the decision by its number that started it: never "some run" and never how many
there are, which another run or an earlier state can satisfy. No wait depends on the machine's speed: the limits are for a
platform that will never get there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from infra import refs
from infra.open_store import open_store
from infra.platform import prefect_server
from tasks.plan.watching import SAME_EXAMPLES, Entry, last_entry
from tasks.run.decided_run import last_start
from tasks.run.record import list_runs, read_run

ROOT = Path(__file__).parents[2]
PRODUCTION = "reviews/production"
PATIENCE = 1200.0
"""Seconds after which something will not happen any more, on a machine that is eight times too busy."""
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


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
        self.store = open_store(self.url)
        shutil.copy(Path(__file__).with_name("month.yaml"), folder / "reviews.yaml")
        reviews.write_corpus(folder)
        self.decided: list[str] = []
        """Flow runs that decisions on new data are known to have started."""
        self.others: list[subprocess.Popen[bytes]] = []
        """Workers of the day on which there are four."""

    def day(self, number: int, what: str) -> None:
        self.say(f"[{time.monotonic() - self.began:5.0f} s] day {number:2}: {what}")

    def forgeline(self, *arguments: str, code: int = 0) -> str:
        """The command line; its stdout. AssertionError on another exit code, with what it said."""
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments],
            cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=PATIENCE,
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
        deadline = time.monotonic() + PATIENCE
        while True:  # whatever is asked here may be asked twice
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    content = answer.read()
                return json.loads(content) if content else None
            except OSError as error:  # SQLite stalls for many seconds on a busy machine, and answers 500 or not at all
                refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
                if refused or time.monotonic() > deadline:
                    raise
                time.sleep(1.0)

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

    def await_(self, what: str, holds: Callable[[], Any], *, every: float = 0.5) -> Any:
        """Wait until something holds; returns it. AssertionError with the workers' last words if it does not."""
        deadline = time.monotonic() + PATIENCE
        while not (found := holds()):
            if time.monotonic() > deadline:
                log = (prefect_server.prefect_home(self.home) / "worker.log").read_text()[-4000:]
                raise AssertionError(f"{what}: not within {PATIENCE:.0f} s\n{log}")
            time.sleep(every)
        return found

    def run(self, id: str) -> dict[str, Any]:
        return dict(self.api("GET", f"/flow_runs/{id}"))

    def ended(self, id: str) -> dict[str, Any]:
        """The flow run, once it has ended."""
        return dict(self.await_(f"the end of {id}", lambda: (run := self.run(id))["state_type"] in ENDED and run))

    def last_decision(self) -> int:
        entry = last_entry(self.store, "reviews")
        return entry.number if entry else 0

    def decision(self, after: int) -> Entry:
        """The decision that follows number `after`: asked for by an event, or by the clock if that came too soon."""

        def newer() -> Entry | None:
            entry = last_entry(self.store, "reviews")
            return entry if entry is not None and entry.number > after else None

        self.data_arrived()
        found: Entry = self.await_(f"decision {after + 1}", newer)
        assert found.number == after + 1, "one state of the data, one decision"
        return found

    def started(self, entry: Entry, start: int = 1) -> str:
        """The flow run of a decision's n-th start."""

        def flow_run() -> str | None:
            found = last_start(self.store, "reviews", entry)
            assert found is None or found.number <= start, f"started {found.number} times"
            return found.note["flow_run"] if found and found.number == start else None

        found: str = self.await_(f"start {start} for decision {entry.number}", flow_run)
        self.decided.append(found)
        return found

    def looks_end(self) -> None:
        """Wait until the looks that go on now have ended."""
        for look in self.runs("watch"):
            self.ended(look["id"])

    def only_decided(self) -> None:
        """New data started the runs that are known, and no other."""
        found = {run["id"]: run["name"] for run in self.runs() if "new data" in run["tags"]}
        assert {*found} == {*self.decided}, found

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

    def end_others(self) -> None:
        for other in self.others:
            with contextlib.suppress(psutil.NoSuchProcess):  # asked politely, a worker waits for more than a minute
                family = [psutil.Process(other.pid), *psutil.Process(other.pid).children(recursive=True)]
                for process in family:
                    process.kill()
            other.wait()
        self.others = []

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
        shown = self.forgeline("deploy", "reviews.yaml", "--dry-run")
        assert "+ deployment reviews/run" in shown and "+ deployment reviews/watch" in shown, shown
        assert "    every 0:04:00: next " in shown, shown
        self.forgeline("deploy", "reviews.yaml")
        again = self.forgeline("deploy", "reviews.yaml", "--dry-run")
        assert all(line.startswith("= ") for line in again.partition("when it runs:")[0].splitlines()), again
        run = self.ended(self.started(self.decision(0)))
        assert run["state_type"] == "COMPLETED", run["state"]
        first = self.champion()
        assert first[0] == 1, "the first model has no champion to beat, and ships"

        self.day(3, "the schedule fires: nothing is new, so nothing is done twice")
        since = datetime.now(UTC)
        run = self.ended(self.await_("a run by schedule", lambda: self.by_schedule(since)))
        assert run["state_type"] == "COMPLETED", run["state"]
        assert self.trainings() == 1 and self.champion() == first

        self.day(6, "a file of duplicates arrives: no training")
        rows = (self.folder / "reviews/base.jsonl").read_text().splitlines()[:80]
        copied = "".join(line.replace('"base-', '"copy-') + "\n" for line in rows)
        before = self.last_decision()
        (self.folder / "reviews/copies.jsonl").write_text(copied)
        same = self.decision(before)
        assert (same.reason, same.run) == (SAME_EXAMPLES, before), "the run it belongs to is the one before"
        self.only_decided()
        assert self.trainings() == 1

        self.day(9, "200 new reviews arrive, are said so a hundred times, four workers are there: one training")
        self.others = [self.worker(number) for number in range(3)]
        self.await_("four workers", lambda: len(self.api("POST", "/work_pools/forgeline/workers/filter", {})) >= 4)
        before = self.last_decision()
        write(self.folder, "second", 200, seed=2)
        for _ in range(10):  # further apart than what the automation takes for one
            self.data_arrived(10)
            time.sleep(2)
        run = self.ended(self.started(self.decision(before)))
        assert run["state_type"] == "COMPLETED", run["state"]
        self.looks_end()
        self.end_others()
        self.only_decided()
        assert self.trainings() == 2

        self.day(12, "somebody tries a learning rate of 0.1 in the form of the UI: a worse challenger is refused")
        champion = self.champion()
        refused = self.run_by_hand({"epochs": 1, "learning_rate": 0.1})
        assert refused["state_name"] == "Refused", refused["state"]
        assert self.champion() == champion

        self.day(15, "reviews with words nobody had used before arrive: drift, a retrain, a better model is promoted")
        before = self.last_decision()
        write(self.folder, "drifted", 300, seed=3, era="new")
        self.ended(self.started(self.decision(before)))
        promoted = self.champion()
        assert promoted[0] == champion[0] + 1, "what learned the new words is better on them, no worse on the old"

        self.day(18, "somebody does not like it: rolled back, and no later run undoes that")
        self.forgeline("rollback", PRODUCTION, "--reason", "the sales team wants the old one")
        rolled = self.champion()
        assert rolled[1] == champion[1]
        assert self.run_by_hand({})["state_name"] == "Completed"
        assert self.champion() == rolled

        self.day(21, "new data; the worker and all it runs are killed in the middle of the training")
        self.pause_schedule()
        before = self.last_decision()
        write(self.folder, "third", 300, seed=4, era="new")
        entry = self.decision(before)
        victim = self.started(entry)
        self.await_training(victim)
        self.kill("worker")
        killed = time.monotonic()
        self.up()
        assert self.ended(victim)["state_type"] == "CRASHED", "it was killed, so it cannot have come to its end"
        self.say(f"        the dead run was marked Crashed {time.monotonic() - killed:.0f} s after the kill")
        self.data_arrived()
        assert self.ended(self.started(entry, 2))["state_type"] == "COMPLETED"
        self.only_decided()

        self.day(25, "new data; the server is killed in the middle of the training and comes back: nothing stops")
        before = self.last_decision()
        write(self.folder, "fourth", 300, seed=5, era="new")
        survivor = self.started(self.decision(before))
        self.await_training(survivor)
        self.kill("server")
        self.up()
        run = self.ended(survivor)
        assert run["state_type"] == "COMPLETED", run["state"]
        self.looks_end()
        self.only_decided()

        self.day(30, "the books are closed")
        self.close()

    def by_schedule(self, since: datetime) -> str | None:
        """The first run that the schedule began after `since`."""
        found = [run for run in self.runs() if run["auto_scheduled"]]
        due = [run["id"] for run in found if datetime.fromisoformat(run["expected_start_time"]) > since]
        return due[0] if due else None

    def pause_schedule(self) -> None:
        """No run by schedule from here on, so that the run of the new data does the training, and is the one killed."""
        run = self.api("GET", "/deployments/name/reviews/run")
        for schedule in run["schedules"]:
            self.api("PATCH", f"/deployments/{run['id']}/schedules/{schedule['id']}", {"active": False})
        asked = {"deployments": {"id": {"any_": [run["id"]]}}, "limit": 200}
        left = [one for one in self.api("POST", "/flow_runs/filter", asked) if one["state_type"] not in ENDED]
        for one in left:  # what goes on, and what waits for its end
            self.ended(one["id"])

    def run_by_hand(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The flow run of somebody who filled in the form and pressed the button, once it has ended."""
        run = self.api("GET", "/deployments/name/reviews/run")
        form = {"parameters": {**run["parameters"], "settings": {**run["parameters"]["settings"], **settings}}}
        form["idempotency_key"] = str(uuid.uuid4())
        return self.ended(self.api("POST", f"/deployments/{run['id']}/create_flow_run", form)["id"])

    def await_training(self, flow_run: str) -> None:
        """Wait until that flow run's classifier is being trained. AssertionError where it is not, or is no more."""
        job = self.home / "runs" / self.await_(f"the record of {flow_run}", lambda: self.record_of(flow_run))
        asked = time.monotonic()

        def trains() -> bool:
            nonlocal asked
            assert not list(job.glob("classifier/*/outcome-*.json")), "the training was over before it was seen"
            if time.monotonic() > asked + 5:  # seldom: a training takes seconds
                assert self.run(flow_run)["state_type"] not in ENDED, "it ended without a training"
                asked = time.monotonic()
            return any(b'"step"' in file.read_bytes() for file in job.glob("classifier/*/events.jsonl"))

        self.await_(f"{flow_run} trains", trains, every=0.1)

    def record_of(self, flow_run: str) -> str | None:
        """The id of the run that a flow run is."""
        records = (self.store.find_json(f"runs/{name}/run.json") for name in reversed(self.store.list("runs")))
        return next((one["run"] for one in records if one and one["flow_run"] == flow_run), None)

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
