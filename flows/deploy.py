"""`forgeline deploy`: register a pipeline with Prefect, all of it or nothing, and say what that changes.

What is there is read first. Each change is applied after the one before it; where one fails, those before it are taken
back in reverse order, so that what was registered is the old state or the new one.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from flows.registration import Body, Registration
from infra.errors import StageError, TransientError

Undo = Callable[[], Any]


@dataclass(frozen=True)
class Change:
    """One object that would be registered. `differs`: (field, what it is, what it will be); empty: as it is."""

    what: str
    there: bool
    differs: tuple[tuple[str, Any, Any], ...]

    def __str__(self) -> str:
        if not self.there:
            return f"+ {self.what}"
        if not self.differs:
            return f"= {self.what}"
        return "\n".join([f"~ {self.what}", *(f"    {name}: {old} -> {new}" for name, old, new in self.differs)])


def deploy(wanted: Registration, *, dry_run: bool = False) -> list[Change]:
    """Register `wanted`; returns what changed, or would. Raises StageError where Prefect refuses, after taking back."""
    with prefect_api() as client:
        present = {name: _deployment(client, wanted.pipeline, name) for name in wanted.deployments}
        automations = {name: _automation(client, name) for name in wanted.automations}
        pool = _pool(client, wanted.pool)
        changes = [Change(f"work pool {wanted.pool}", pool, ())]
        for name, body in wanted.deployments.items():
            changes.append(_change(f"deployment {wanted.pipeline}/{name}", present[name], body))
        for name, body in wanted.automations.items():
            changes.append(_change(f"automation {name!r}", automations[name], body))
        if not dry_run:
            _apply(client, wanted, present, automations, pool=pool)
        return changes


def _apply(
    client: SyncPrefectClient,
    wanted: Registration,
    present: dict[str, Body | None],
    automations: dict[str, Body | None],
    *,
    pool: bool,
) -> None:
    undo: list[Undo] = []
    try:
        if not pool:
            _send(client, "POST", "/work_pools/", {"name": wanted.pool, "type": "process"})
            undo.append(lambda: _send(client, "DELETE", f"/work_pools/{wanted.pool}"))
        flow = client.create_flow_from_name(wanted.pipeline)
        ids = {}
        for name, body in wanted.deployments.items():
            made = _send(client, "POST", "/deployments/", {**body, "name": name, "flow_id": str(flow)})
            undo.append(_take_back_deployment(client, str(flow), name, made["id"], present[name]))
            ids[name] = made["id"]
        for name, body in wanted.automations.items():
            full = {**body, "name": name, "actions": [_with_id(action, ids) for action in body["actions"]]}
            before = automations[name]
            if before is None:
                made = _send(client, "POST", "/automations/", full)
                undo.append(_call(client, "DELETE", f"/automations/{made['id']}"))
            else:
                _send(client, "PUT", f"/automations/{before['id']}", full)
                undo.append(_call(client, "PUT", f"/automations/{before['id']}", _automation_body(before)))
    except BaseException:
        for take_back in reversed(undo):
            take_back()
        raise


def _call(client: SyncPrefectClient, method: str, path: str, body: Body | None = None) -> Undo:
    return lambda: _send(client, method, path, body)


def _take_back_deployment(client: SyncPrefectClient, flow: str, name: str, made: str, before: Body | None) -> Undo:
    if before is None:
        return _call(client, "DELETE", f"/deployments/{made}")
    fields = (*COMPARED, "enforce_parameter_schema")
    return _call(client, "POST", "/deployments/", {**{f: before[f] for f in fields}, "name": name, "flow_id": flow})


COMPARED = (
    "version", "description", "tags", "entrypoint", "work_pool_name", "pull_steps", "parameters",
    "parameter_openapi_schema", "schedules", "concurrency_limit", "concurrency_options",
)  # fmt: skip
TRIGGER = ("expect", "after", "match", "for_each", "posture", "threshold", "within")


def _change(what: str, before: Body | None, body: Body) -> Change:
    if before is None:
        return Change(what, there=False, differs=())
    if "trigger" in body:
        old = {name: before["trigger"][name] for name in body["trigger"] if name in TRIGGER}
        new = {name: value for name, value in body["trigger"].items() if name in TRIGGER}
        old, new = _in_order(old), _in_order(new)
    else:
        old, new = ({name: one.get(name) for name in COMPARED} for one in (before, body))
        for one in (old, new):  # Prefect gives the schedules back in an order of its own
            one["schedules"] = sorted(one["schedules"], key=json.dumps)
    return Change(what, True, tuple((name, old[name], new[name]) for name in new if old[name] != new[name]))


def _in_order(trigger: Body) -> Body:
    """Sets come back in any order, a duration as a number."""
    found: Body = {name: sorted(value) if isinstance(value, list) else value for name, value in trigger.items()}
    if isinstance(found.get("match"), dict):
        found["match"] = {k: v if isinstance(v, list) else [v] for k, v in found["match"].items()}
    if "within" in found:
        found["within"] = float(found["within"])
    return found


def _deployment(client: SyncPrefectClient, pipeline: str, name: str) -> Body | None:
    found = _find(client, f"/deployments/name/{pipeline}/{name}")
    if found is None:
        return None
    found["schedules"] = [{"schedule": one["schedule"], "active": one["active"]} for one in found["schedules"]]
    limit = found.get("global_concurrency_limit") or {}
    options = found.get("concurrency_options") or {}
    found["concurrency_limit"] = limit.get("limit", found.get("concurrency_limit"))
    found["concurrency_options"] = {"collision_strategy": options.get("collision_strategy")}
    return found


def _automation(client: SyncPrefectClient, name: str) -> Body | None:
    asked = {"automations": {"name": {"any_": [name]}}}
    found: list[Body] = _send(client, "POST", "/automations/filter", asked)
    return found[0] if found else None


def _automation_body(found: Body) -> Body:
    return {name: found[name] for name in ("name", "description", "enabled", "trigger", "actions")}


def _with_id(action: Body, ids: dict[str, str]) -> Body:
    if "deployment" not in action:
        return action
    named = {name: value for name, value in action.items() if name != "deployment"}
    return {**named, "deployment_id": ids[action["deployment"]]}


def _pool(client: SyncPrefectClient, name: str) -> bool:
    return _find(client, f"/work_pools/{name}") is not None


def _find(client: SyncPrefectClient, path: str) -> Body | None:
    try:
        found: Body = client.request("GET", path).json()  # type: ignore[arg-type]
    except ObjectNotFound:
        return None
    except PrefectHTTPStatusError as error:
        if error.response.status_code == 404:
            return None
        raise
    return found


def _send(client: SyncPrefectClient, method: Any, path: Any, body: Body | None = None) -> Any:
    answer = client.request(method, path, json=body)
    return answer.json() if answer.content else None


@contextlib.contextmanager
def prefect_api() -> Iterator[SyncPrefectClient]:
    """A client of the Prefect server in use; what it raises becomes an error that says what to do."""
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    url = PREFECT_API_URL.value()
    if not url:
        raise StageError(
            "there is no Prefect server to talk to", where="PREFECT_API_URL", hint="Start one here: forgeline up."
        )
    try:
        # A person waits for it, or a look that another one follows.
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 2}), get_client(sync_client=True) as client:
            yield client
    except PrefectHTTPStatusError as error:
        code = error.response.status_code
        hint = "Set PREFECT_API_AUTH_STRING." if code in (401, 403) else None
        raise StageError(f"Prefect answered {code}: {error.response.text[:500]}", where=url, hint=hint) from error
    except httpx.HTTPError as error:
        what = f"Prefect cannot be reached ({type(error).__name__}: {error})"
        raise TransientError(what, where=url, hint="Is it running? Start one here: forgeline up.") from error
