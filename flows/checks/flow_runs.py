"""What `doctor` makes of a Prefect server's flow runs: those that stand still, deployments that come to nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from flows.checks.check import Finding
from infra.durations import duration_text

Ask = Callable[..., Any]
STANDS = 900.0
"""Seconds in Pending or Cancelling from which on nobody is at work on a run; an automation ends it before that."""
LAST = 3
SHOWN = 3
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def standing(ask: Ask, now: datetime | None = None) -> Finding:
    """Runs that a worker took and that do not begin, or that were cancelled and do not end."""
    now = now or datetime.now(UTC)
    asked = {"flow_runs": {"state": {"type": {"any_": ["PENDING", "CANCELLING"]}}}, "limit": 200}
    found = []
    for run in ask("POST", "/flow_runs/filter", asked):
        age = (now - datetime.fromisoformat(run["state"]["timestamp"])).total_seconds()
        if age > STANDS:
            found.append(f"{run['name']} ({run['state_type'].capitalize()} for {duration_text(age)}, {run['id']})")
    if not found:
        return Finding("ok", "none")
    said = f"{len(found)} runs do not begin or end, and may hold up those after them: {', '.join(found[:SHOWN])}"
    mend = "Their worker is dead. `forgeline deploy FILE` adds what ends such runs; these: prefect flow-run delete ID."
    return Finding("fault", said, mend)


def cancelled(ask: Ask) -> Finding | None:
    """Deployments of which the last runs were all cancelled, though none goes on that they could have waited for."""
    deployments = ask("POST", "/deployments/filter", {"limit": 200})
    if not deployments:
        return None
    names = {flow["id"]: flow["name"] for flow in ask("POST", "/flows/filter", {"limit": 200})}
    found = []
    for one in deployments:
        of = {"deployments": {"id": {"any_": [one["id"]]}}, "sort": "EXPECTED_START_TIME_DESC"}
        runs = [ask("POST", "/flow_runs/filter", {**of, **_in(states, limit)}) for states, limit in
                ((ENDED, LAST), (("RUNNING",), 1))]  # fmt: skip
        if not runs[1] and comes_to_nothing([run["state_type"] for run in runs[0]]):
            found.append(f"{names.get(one['flow_id'], '?')}/{one['name']}")
    if not found:
        return Finding("ok", "none whose last runs were all cancelled")
    said = f"the last {LAST} runs were cancelled, and none goes on: {', '.join(found[:SHOWN])}"
    mend = "A run that stands still may hold the only slot (see `standing runs`), or somebody cancels them: see the UI."
    return Finding("fault", said, mend)


def comes_to_nothing(states: Sequence[str]) -> bool:
    """Whether a deployment's last runs, the newest first, were all cancelled."""
    return len(states) >= LAST and all(state == "CANCELLED" for state in states[:LAST])


def _in(states: Sequence[str], limit: int) -> Mapping[str, Any]:
    return {"flow_runs": {"state": {"type": {"any_": list(states)}}}, "limit": limit}
