"""The flows that deployments run: a pipeline, and a look at its data. Started by a Prefect worker, by name.

A deployed pipeline's flow run has the stages as its tasks, as `forgeline run` has. It ends Completed, also where a gate
refused (`Refused`: that is a result); Failed where a stage failed; `Interrupted` where it was stopped and the next run
goes on from there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, State, StateType
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.runtime import flow_run as running
from prefect.states import Completed, Failed

from flows.deploy import prefect_api
from flows.pipeline import task_runner
from flows.registration import RUN
from flows.run import run_pipeline
from flows.search import run_trials
from flows.watch import look
from flows.watch_here import fate_here, make_here
from infra.errors import StoreError, UsageError
from infra.markdown import code, plain_text
from tasks.pipeline.dag import Pipeline
from tasks.pipeline.load import load_pipeline
from tasks.pipeline.parameter_form import overrides
from tasks.pipeline.search import Results
from tasks.plan.watching import Entry
from tasks.run.decided_run import Fate
from tasks.run.prefect_task import artifact_key
from tasks.run.record import RunRecord, spent_by

MOST_STAGES = 512
INTERRUPTED = "Interrupted"
LEFT_OUT = "Deployment concurrency limit reached"
"""How Prefect begins the message of a run that it cancelled because another one goes on (`overlap: skip`)."""
HOLDS_THE_SLOT = FlowRunFilter(
    state=FlowRunFilterState(
        type=FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
    )
)


@flow(name="forgeline", task_runner=task_runner(MOST_STAGES), persist_result=False, validate_parameters=False)
def run_deployed(file: str, settings: dict[str, Any] | None = None) -> State[Any]:
    """Run a pipeline file with the settings of the form. Raises ForgelineError on a file or settings that are wrong."""
    path = Path(file)
    changes = overrides(load_pipeline(path), settings or {})
    rounds: list[RunRecord] = []

    def once(pipeline: Pipeline) -> int:
        record, code = run_pipeline(pipeline, quiet=True, began=_name_run, already=spent_by(rounds), attended=False)
        rounds.append(record)
        try:
            _report(record)
        except StoreError as error:
            get_run_logger().warning("no report: %s", error)
        return code

    def load(results: Results) -> Pipeline:
        return load_pipeline(path, changes, None, results)

    pipeline, code = run_trials(load, once, get_run_logger().info)
    if pipeline is not None:
        code = once(pipeline)
    return _state(rounds[-1].data, code)


@flow(name="forgeline-watch", task_runner=task_runner(MOST_STAGES), persist_result=False, validate_parameters=False)
def watch_deployed(file: str) -> State[Any]:
    """Look at a pipeline's data once, and start its deployment where they are worth it."""
    pipeline = load_pipeline(Path(file))
    found = look(pipeline, DeployedRun(pipeline.name), make_here)
    get_run_logger().info("%s", found)
    if found.action == "gave up":
        return Failed(name="Gave up", message=found.reason)
    return Completed(name=found.action.capitalize(), message=found.reason)


class DeployedRun:
    """Starts the deployment of a pipeline, once for each decision and attempt, whoever asks and however often."""

    def __init__(self, pipeline: str) -> None:
        self.pipeline = pipeline

    def start(self, entry: Entry, attempt: int) -> dict[str, Any] | None:
        with prefect_api() as client:
            try:
                deployment = client.read_deployment_by_name(f"{self.pipeline}/{RUN}")
            except ObjectNotFound as error:
                what = f"{self.pipeline} is not deployed on this Prefect server"
                raise UsageError(what, where=str(client.api_url), hint="Deploy it: forgeline deploy FILE.") from error
            options = deployment.concurrency_options
            if options and options.collision_strategy == ConcurrencyLimitStrategy.CANCEL_NEW:
                of = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
                if client.read_flow_runs(flow_run_filter=HOLDS_THE_SLOT, deployment_filter=of, limit=1):
                    return None
            begun = client.create_flow_run_from_deployment(
                deployment.id,
                # By when it was decided as well: the data may come back to a state that had its run before.
                idempotency_key=f"{self.pipeline}-{entry.run}-{entry.at}-{attempt}",
                name=f"new data {entry.run}" + (f", start {attempt}" if attempt > 1 else ""),
                tags=["new data"],
            )
        return {"flow_run": str(begun.id)}

    def fate(self, note: dict[str, Any]) -> Fate:
        if "flow_run" not in note:
            return fate_here(note)
        with prefect_api() as client:
            try:
                state = client.read_flow_run(note["flow_run"]).state
            except ObjectNotFound:
                return Fate("failed", "Prefect knows the run no more")
        return fate_of(state) if state is not None else Fate("under way")


def fate_of(state: State[Any]) -> Fate:
    """What the state of a deployed pipeline's flow run says of its work. A gate that refused is work done."""
    why = state.message or state.name or state.type.value
    if state.is_cancelled():
        return Fate("left out" if why.startswith(LEFT_OUT) else "cancelled", why)
    if state.is_crashed() or state.is_failed():
        return Fate("interrupted" if state.name == INTERRUPTED else "failed", why)
    return Fate("done", why) if state.is_completed() else Fate("under way", why)


def _name_run(record: RunRecord) -> None:
    """The flow run gets the run's id as its name, and the record its id: UI, W&B and report speak of one thing."""
    if running.id:
        record.data["flow_run"] = running.id
        with _only_shown(), get_client(sync_client=True) as client:
            client.update_flow_run(UUID(running.id), name=record.data["run"])


def _report(record: RunRecord) -> None:
    """The run's report, in the store beside its record, and where it is as an artifact of the UI."""
    from tasks.release.report.page import render_report
    from tasks.release.report.stored_evidence import evidence_loader

    path = f"runs/{record.data['run']}/report.html"
    page = render_report(record.data, evidence_loader(record.store))
    record.store.write_bytes(path, page.encode("utf-8"))
    pipeline = record.data["pipeline"]
    lines = [f"# {pipeline}: {record.data['status']}", "", f"Report: {code(f'{record.store.url}/{path}')}", ""]
    lines += [f"{name}: {place}" for name, place in record.data.get("links", {}).items() if name != "Prefect"] + [""]
    lines += [
        f"- {stage['name']} ({stage['kind']}): {stage['action']} {plain_text(stage['reason'])}"
        for stage in record.data["stages"]
    ]
    for stage in record.data["stages"]:
        lines += [f"- {stage['name']} warns: {plain_text(warning)}" for warning in stage["warnings"]]
        lines += [f"- {stage['name']} refused: {plain_text(sentence)}" for sentence in stage["refusal"]]
    key, description = artifact_key(pipeline, "report"), f"run {record.data['run']}"
    with _only_shown():
        create_markdown_artifact("\n".join(lines), key=key, description=description)


@contextlib.contextmanager
def _only_shown() -> Iterator[None]:
    """For what is only shown in the UI: a server that is away costs the run nothing but that."""
    try:
        yield
    except (httpx.HTTPError, PrefectHTTPStatusError) as error:
        get_run_logger().warning("the Prefect UI could not be updated: %s", error)


def _state(record: dict[str, Any], code: int) -> State[Any]:
    words = f"run {record['run']}"
    errors = [f"{stage['name']}: {stage['error']['what']}" for stage in record["stages"] if stage["error"]]
    match code:
        case 0:
            return Completed(message=words)
        case 4:
            asked = [sentence for stage in record["stages"] for sentence in stage.get("refusal", [])]
            message = " ".join([f"{words}: a gate refused, and nothing was promoted by it.", *asked])
            return Completed(name="Refused", message=message)
        case 75 | 130:
            return Failed(name=INTERRUPTED, message=f"{words} was stopped; the next one goes on from there")
        case _:
            return Failed(message="; ".join([words, *errors, *filter(None, [record["stopped"]])]))
