"""Checks of the Prefect server: reachable, its database, version, workers, clock, runs that nobody takes.

There is nothing to check where no server is configured: runs then start a temporary one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.checks import flow_runs
from flows.checks.check import Check, Finding, clocks
from flows.prefect_settings import use_running_server
from infra.errors import StageError
from infra.platform import prefect_server

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

START = "Start one: `forgeline up` here, or `prefect worker start --pool {} --type {}` where it shall work."


def checks(home: Path) -> list[Check]:
    return [
        Check("prefect", partial(api, home), seconds=60.0),
        Check("prefect workers", partial(workers, home), after="prefect"),
        Check("prefect clock", partial(clock, home), after="prefect"),
        Check("late runs", partial(late_runs, home), after="prefect"),
        Check("standing runs", partial(_asked, home, flow_runs.standing), after="prefect"),
        Check("cancelled runs", partial(_asked, home, flow_runs.cancelled), seconds=60.0, after="prefect"),
    ]


def api(home: Path) -> Finding:
    """Whether the server answers, has its database, takes our credentials and is of our version."""
    with _client(home) as client:
        if client is None:
            return _none(home)
        import prefect
        from prefect.exceptions import PrefectHTTPStatusError

        try:
            _ask(client, "GET", "/ready")
        except PrefectHTTPStatusError as error:
            if error.response.status_code != 503:
                raise
            said = f"{client.api_url} answers, but its database does not"
            return Finding("fault", said, "Start the database again, or see whether it is full; the server comes back.")
        version = str(_ask(client, "GET", "/admin/version"))
        said = f"{client.api_url} answers, Prefect {version}"
        if version.split(".")[:2] != prefect.__version__.split(".")[:2]:
            mend = f"Install the same on both sides: pip install 'prefect=={version}' here, or upgrade the server."
            return Finding("warning", f"{said}, but {prefect.__version__} is installed here", mend)
        return Finding("ok", said)


def workers(home: Path) -> Finding | None:
    """Whether somebody works for every work pool."""
    with _client(home) as client:
        if client is None:
            return None
        said, idle, paused = [], [], []
        for pool in _ask(client, "POST", "/work_pools/filter", {}):
            name = pool["name"]
            if pool["is_paused"]:
                paused.append(name)
            if pool["type"].endswith(":push") or pool["type"].startswith("prefect:"):  # they need no worker
                continue
            living = [w for w in _ask(client, "POST", f"/work_pools/{name}/workers/filter", {}) if _lives(w)]
            said.append(f"pool {name}: {len(living)} at work")
            idle += [] if living else [pool]
        if idle:
            return Finding("fault", "; ".join(said), START.format(idle[0]["name"], idle[0]["type"]))
        if paused:
            return Finding("warning", f"paused: {', '.join(paused)}", f"prefect work-pool resume {paused[0]}")
        if not said:
            return Finding("warning", "there is no work pool", "`forgeline up` makes one with a worker.")
        return Finding("ok", "; ".join(said))


def clock(home: Path) -> Finding | None:
    """The server's clock against ours, by the date of an answer."""
    with _client(home) as client:
        if client is None:
            return None
        before = time.time()
        answer = client.request("GET", "/health")
        there = parsedate_to_datetime(answer.headers["Date"]).timestamp() + 0.5  # whole seconds, cut off
        return clocks("the Prefect server's clock", there - (before + time.time()) / 2)


def late_runs(home: Path) -> Finding | None:
    """Runs that were due and that no worker took."""
    with _client(home) as client:
        if client is None:
            return None
        late = _ask(client, "POST", "/flow_runs/count", {"flow_runs": {"state": {"name": {"any_": ["Late"]}}}})
        if late:
            mend = "A worker is missing, or busy: see `prefect workers` above, and the limits of the pool in the UI."
            return Finding("warning", f"{late} runs are due and were not taken", mend)
        return Finding("ok", "none")


def _asked(home: Path, check: Callable[[flow_runs.Ask], Finding | None]) -> Finding | None:
    """A check of `flow_runs.py`, with the server to ask."""
    with _client(home) as client:
        return check(partial(_ask, client)) if client is not None else None


def _none(home: Path) -> Finding:
    folder = prefect_server.prefect_home(home)
    if (folder / "services.json").exists():
        said = "the server of `forgeline up` does not run any more"
        return Finding("fault", said, f"Start it again: forgeline up. Why it ended: {folder / 'server.log'}.")
    return Finding("ok", "no server is configured: runs use a temporary one, `forgeline up` starts one that stays")


def _lives(worker: dict[str, Any]) -> bool:
    return str(worker["status"]).upper() == "ONLINE"


@contextmanager
def _client(home: Path) -> Iterator[SyncPrefectClient | None]:
    """A client that does not retry, so that what is down shows at once; None: no server is configured."""
    use_running_server(home)
    from prefect.settings import (
        PREFECT_API_REQUEST_TIMEOUT,
        PREFECT_API_URL,
        PREFECT_CLIENT_MAX_RETRIES,
        temporary_settings,
    )

    from flows.deploy import prefect_api

    if not PREFECT_API_URL.value():
        yield None
        return
    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: 10.0}),
        prefect_api() as client,
    ):
        yield client


def _ask(client: SyncPrefectClient, method: Any, path: Any, body: Any = None) -> Any:
    answer = client.request(method, path, json=body)
    if "json" not in answer.headers.get("content-type", ""):
        what = f"what answers is no Prefect server ({answer.headers.get('content-type', 'no content type')})"
        raise StageError(what, where=str(client.api_url), hint="PREFECT_API_URL must end in /api.")
    return answer.json()
