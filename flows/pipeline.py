"""The pipeline flow: an arbitrary DAG of stages run by Prefect, with one thread per stage that waits.

Independent branches run side by side as far as the machine's slots allow, and go on when one fails; what needs a failed
stage does not run. Cancelling the flow, Ctrl-C, or the death of this process ends every process of the run.
"""

from __future__ import annotations

import os
from typing import Any

from prefect import allow_failure, flow
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture, wait
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.monitor import Monitor
from flows.prefect_settings import has_temporary
from infra.artifacts import ArtifactRef
from infra.errors import StageError
from tasks.pipeline.dag import Pipeline
from tasks.run.context import RunContext
from tasks.run.head_start import HeadStart
from tasks.run.prefect_task import UiUpdates, show_ledger, stage_task


def run_with_prefect(
    pipeline: Pipeline,
    known: dict[str, ArtifactRef],
    context: RunContext,
    monitor: Monitor,
    head_start: HeadStart | None = None,
) -> None:
    """Run every stage of `pipeline`: as a flow run of their own or, within one (`flows/deployed.py`), as its tasks.

    `monitor` gets what became of each stage. known: artifacts of refs; filled with each stage's artifact as
    it is made. head_start: stages that began before Prefect was there, whose tasks take them over. Raises StageError
    where Prefect could not begin the flow.
    """
    nodes = list(pipeline.stages.values())
    updates = UiUpdates()
    entered = False

    def run_stages() -> State[Any]:
        nonlocal entered
        entered = True
        if head_start is not None:
            head_start.hand_over()
        futures: dict[str, PrefectFuture[Any]] = {}
        monitor.record.data |= {"flow_run": str(flow_run.id), "links": _links(pipeline, context.run)}
        try:
            for node in nodes:
                wrapped = stage_task(node, nodes, known, context, monitor.end, monitor.percent, updates, head_start)
                optional = {item.stage for item in node.inputs if item.optional}
                before: list[Any] = [
                    allow_failure(futures[name]) if name in optional else futures[name] for name in node.needs
                ]
                futures[node.name] = wrapped.submit(return_state=False, wait_for=before)
            wait(list(futures.values()))
        except BaseException:
            context.cancel()
            wait(list(futures.values()))
            raise
        updates.later(lambda: show_ledger(pipeline.name, context.run, monitor.record.times.ledger(pipeline.budget)))
        bad = [name for name, future in futures.items() if not future.state.is_completed()]
        return Failed(message=f"not completed: {', '.join(bad)}") if bad else Completed(message="all stages completed")

    try:
        if FlowRunContext.get() is not None:
            run_stages()
        else:
            as_flow = flow(
                name=pipeline.name,
                description=pipeline.description or None,
                flow_run_name=context.run,
                task_runner=task_runner(len(nodes)),
                persist_result=False,
                validate_parameters=False,
            )
            try:
                as_flow(run_stages)(return_state=True)
            except Exception as error:
                if entered:
                    raise
                raise _no_server(context, error) from error
    finally:
        updates.close(1.0 if context.cancelled.is_set() else 5.0)


def _no_server(context: RunContext, error: Exception) -> StageError:
    """The error of a run whose flow never began, which is hardly anything but its server."""
    where = "the temporary Prefect server" if has_temporary() else str(PREFECT_API_URL.value())
    what = f"Prefect could not begin the flow run: {type(error).__name__}: {error} ({where})"
    hint = f"See {context.folder / 'prefect.log'}. What stages made meanwhile is stored: run it again to go on."
    return StageError(f"{what}. {hint}", where=where)


def _links(pipeline: Pipeline, run: str) -> dict[str, str]:
    """Where else the run is shown: its page in the Prefect UI, its group in W&B. A temporary server has no page."""
    found = {"Prefect": "" if has_temporary() else flow_run.ui_url or "", "W&B": ""}
    mode = pipeline.tracking.resolved_mode(os.environ)
    if mode != "disabled":
        project = pipeline.tracking.project or pipeline.name
        owner = pipeline.tracking.entity
        page = f"{os.environ.get('WANDB_BASE_URL', 'https://wandb.ai')}/{owner}/{project}/groups/{run}"
        found["W&B"] = page if owner and mode == "online" else f"project {project}, group {run} ({mode})"
    return {name: place for name, place in found.items() if place}


def task_runner(stages: int) -> Any:
    """One thread a stage: those that wait for others, or for a slot, hold theirs."""
    return ThreadPoolTaskRunner(max_workers=stages)
