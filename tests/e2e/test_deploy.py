"""Deploying to a real Prefect server: all of it or nothing, what it refuses, and events that name nobody."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

import flows.registration
from flows.checks.flow_runs import STANDS, cancelled, standing
from flows.deploy import deploy
from flows.deployed import DeployedRun
from flows.registration import Registration, registration
from infra.errors import ForgelineError, StageError, TransientError
from tasks.pipeline.load import load_pipeline
from tasks.plan.watching import Entry
from tasks.run.decided_run import Fate

pytestmark = pytest.mark.e2e
PIPELINE = """
name: deployed
stages:
  texts: {dataset: {sources: [{files: "*.txt"}]}}
  words: {tokenizer: {data: texts, vocab_size: 300}}
deploy:
  schedules: [{cron: "0 3 * * *", timezone: Europe/Berlin}, {rrule: "FREQ=WEEKLY;BYDAY=MO"}]
  parameters: {size: stages.words.vocab_size}
  watch: {every: 1h}
"""


@pytest.fixture(scope="module")
def api(api: str) -> Iterator[str]:
    """The same server, for what talks to it in this process."""
    with temporary_settings({PREFECT_API_URL: api}):
        yield api


@pytest.fixture
def wanted(tmp_path: Path) -> Registration:
    (tmp_path / "p.yaml").write_text(PIPELINE)
    return registration(load_pipeline(tmp_path / "p.yaml"), working_dir=tmp_path, version="v1")


def ask(api: str, method: str, path: str, body: Any = None) -> Any:
    request = urllib.request.Request(
        api + path, method=method, headers={"content-type": "application/json"},
        data=None if body is None else json.dumps(body).encode(),
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or "null")
        except OSError as error:  # SQLite stalls on a busy machine
            refused = isinstance(error, urllib.error.HTTPError) and error.code != 503
            if refused or time.monotonic() > deadline:
                raise
        time.sleep(1.0)


def refused(api: str, path: str, body: Any) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(api, "POST", path, body)
    return caught.value.code, caught.value.read().decode()


def names(api: str) -> set[str]:
    deployments = ask(api, "POST", "/deployments/filter", {})
    return {one["name"] for one in [*deployments, *ask(api, "POST", "/automations/filter", {})]}


def event(name: str) -> dict[str, Any]:
    return {
        "event": "dataset.updated", "id": str(uuid.uuid4()), "occurred": "2026-11-24T03:00:00Z",
        "resource": {"prefect.resource.id": f"forgeline.pipeline.{name}"}, "payload": {},
    }  # fmt: skip


def test_all_of_it_or_nothing_and_then_only_what_differs(api: str, wanted: Registration) -> None:
    before = names(api)
    broken = replace(wanted, automations={**wanted.automations, "last": {"trigger": {"type": "never"}, "actions": []}})
    with pytest.raises(StageError, match="Prefect answered 422"):
        deploy(broken)
    assert names(api) == before, "what came before the one that failed was taken back"

    assert {str(change)[0] for change in deploy(wanted, dry_run=True)} <= {"+", "="}
    assert names(api) == before, "a dry run changes nothing"
    deploy(wanted)
    assert {"run", "watch"} <= names(api)
    assert {str(change)[0] for change in deploy(wanted, dry_run=True)} == {"="}

    later = {**wanted.deployments["run"], "version": "v2", "schedules": []}
    newer = replace(wanted, deployments={**wanted.deployments, "run": later})
    differs = {change.what: [name for name, _, _ in change.differs] for change in deploy(newer, dry_run=True)}
    assert differs["deployment deployed/run"] == ["version", "schedules"]
    with pytest.raises(StageError):
        deploy(replace(newer, automations=broken.automations))
    assert {str(change)[0] for change in deploy(wanted, dry_run=True)} == {"="}, "the old state, not a mix"
    deploy(newer)
    assert ask(api, "GET", "/deployments/name/deployed/run")["version"] == "v2"


def test_a_wrong_value_in_the_form_is_refused_with_its_field(api: str, wanted: Registration) -> None:
    deploy(wanted)
    run = ask(api, "GET", "/deployments/name/deployed/run")
    path = f"/deployments/{run['id']}/create_flow_run"
    code, shown = refused(api, path, {"parameters": {"settings": {"size": "many"}}})
    assert (code, "many" in shown) == (409, True), shown
    given = {"parameters": {"settings": {"size": 400}}, "state": {"type": "SCHEDULED"}, "idempotency_key": "one"}
    first, again = (ask(api, "POST", path, given) for _ in range(2))
    assert first["id"] == again["id"], "the same key starts one run"
    assert first["parameters"]["file"] == wanted.deployments["run"]["parameters"]["file"]
    ask(api, "POST", f"/flow_runs/{first['id']}/set_state", {"state": {"type": "CANCELLED"}, "force": True})


@pytest.mark.parametrize(("overlap", "second"), [("skip", "CANCELLED"), ("queue", "SCHEDULED")])
def test_a_run_that_is_due_while_another_goes_on_is_left_out_or_waits(
    api: str, tmp_path: Path, overlap: str, second: str
) -> None:
    (tmp_path / "p.yaml").write_text(PIPELINE.replace("name: deployed", f"name: {overlap}") + f"  overlap: {overlap}\n")
    deploy(registration(load_pipeline(tmp_path / "p.yaml"), working_dir=tmp_path, version=None))
    run = ask(api, "GET", f"/deployments/name/{overlap}/run")
    due = {"state": {"type": "SCHEDULED", "state_details": {"scheduled_time": "2100-01-01T00:00:00Z"}}}
    made = [ask(api, "POST", f"/deployments/{run['id']}/create_flow_run", due)["id"] for _ in range(2)]
    found = []
    for one in made:  # as a worker does that starts them
        asked = {"state": {"type": "PENDING"}, "force": False}
        found.append(ask(api, "POST", f"/flow_runs/{one}/set_state", asked)["state"]["type"])
    assert found == ["PENDING", second]
    for one in made:  # or the worker takes the one that waits
        ask(api, "POST", f"/flow_runs/{one}/set_state", {"state": {"type": "CANCELLED"}, "force": True})


def test_the_run_of_a_decision_is_started_once_and_what_became_of_it_is_known(api: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        PIPELINE.replace("name: deployed", "name: decided") + "  overlap: skip\n  pool: idle\n"
    )
    deploy(registration(load_pipeline(tmp_path / "p.yaml"), working_dir=tmp_path, version=None))
    starter, first = DeployedRun("decided"), Entry(1, "state a", {}, "", 1, "2026-11-24T03:00:00+00:00")

    def becomes(note: dict[str, Any] | None, **state: Any) -> Fate:
        assert note is not None
        ask(api, "POST", f"/flow_runs/{note['flow_run']}/set_state", {"state": state, "force": "name" in state})
        return starter.fate(note)

    one, again, second = (starter.start(first, attempt) for attempt in (1, 1, 2))
    assert one == again != second, "started once, whoever asks"
    back = Entry(3, "state a", {}, "", 3, "2026-11-25T03:00:00+00:00")
    third = starter.start(back, 1)
    assert third not in (one, second), "the data came back to a state that had its run before"
    assert becomes(one, type="PENDING").state == "under way"
    assert starter.start(first, 3) is None, "it would be left out"
    assert becomes(second, type="PENDING") == Fate("left out", "Deployment concurrency limit reached.")
    assert becomes(one, type="CANCELLED", name="Cancelled").state == "cancelled", "by a person"
    assert becomes(one, type="CRASHED", name="Crashed", message="gone") == Fate("failed", "gone")
    assert becomes(one, type="FAILED", name="Interrupted").state == "interrupted"
    assert becomes(one, type="FAILED", name="Failed").state == "failed"
    assert becomes(one, type="COMPLETED", name="Refused").state == "done"
    assert {becomes(one, type="CANCELLED", name="Cancelled").state for one in (one, third)} == {"cancelled"}
    assert starter.fate({"flow_run": str(uuid.uuid4())}).state == "failed"


def test_a_run_whose_worker_died_is_crashed_and_makes_room(
    api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.registration, "BEGINNING", 10)
    monkeypatch.setattr(flows.registration, "SILENCE", 10)
    (tmp_path / "p.yaml").write_text(
        PIPELINE.replace("name: deployed", "name: died") + "  overlap: skip\n  pool: idle\n"
    )
    deploy(registration(load_pipeline(tmp_path / "p.yaml"), working_dir=tmp_path, version=None))

    def taken(deployment: str) -> str:
        found = ask(api, "GET", f"/deployments/name/died/{deployment}")
        due = {"state": {"type": "SCHEDULED"}}
        made = str(ask(api, "POST", f"/deployments/{found['id']}/create_flow_run", due)["id"])
        assert becomes(made, "PENDING") == "PENDING", "no other holds the slot"
        return made

    def becomes(made: str, state: str, name: str | None = None) -> str:
        asked = {"state": {"type": state, "name": name}, "force": False}
        answer = ask(api, "POST", f"/flow_runs/{made}/set_state", asked)
        return str(answer["state"]["name" if name else "type"])

    dead = [taken("run"), taken("watch")]
    assert becomes(dead[0], "PENDING", "Submitting") == "Submitting", "and its worker dies before it begins"
    assert becomes(dead[1], "RUNNING") == "RUNNING", "and it dies before its first beat"
    later = standing(partial(ask, api), datetime.now(UTC) + timedelta(seconds=STANDS))
    assert (later.level, dead[0] in later.said, dead[1] in later.said) == ("fault", True, False), later.said
    assert standing(partial(ask, api)).level == "ok"
    deadline = time.monotonic() + 240
    while [ask(api, "GET", f"/flow_runs/{made}")["state_type"] for made in dead] != ["CRASHED"] * 2:
        assert time.monotonic() < deadline, [ask(api, "GET", f"/flow_runs/{made}")["state"] for made in dead]
        time.sleep(0.5)
    for deployment in ("run", "watch", "run", "run"):
        ask(api, "POST", f"/flow_runs/{taken(deployment)}/set_state", {"state": {"type": "CANCELLED"}, "force": True})
    found = cancelled(partial(ask, api))
    assert found is not None and "died/run" in found.said and "died/watch" not in found.said, found


def test_events_that_are_malformed_or_name_nobody(api: str, wanted: Registration) -> None:
    deploy(wanted)
    code, shown = refused(api, "/events", [{"event": "dataset.updated", "resource": {}}])
    assert (code, "prefect.resource.id" in shown) == (422, True), shown
    begun = {"flow_runs": {"state": {"type": {"not_any_": ["SCHEDULED", "CANCELLED", "CRASHED"]}}}}
    ask(api, "POST", "/events", [event("nobody")])
    assert ask(api, "POST", "/flow_runs/filter", begun) == []


def test_a_server_that_is_away_or_asks_for_a_password(wanted: Registration) -> None:
    class Closed(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_response(401)
            self.end_headers()

        do_GET = do_POST = answer

        def log_message(self, *args: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Closed)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/api"
    errors: list[ForgelineError] = []
    try:
        with temporary_settings({PREFECT_API_URL: url}), pytest.raises(StageError, match="answered 401") as caught:
            deploy(wanted)
        errors.append(caught.value)
    finally:
        server.shutdown()
        server.server_close()
    assert errors[0].hint == "Set PREFECT_API_AUTH_STRING."
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(TransientError, match="cannot be reached"):
        deploy(wanted)
