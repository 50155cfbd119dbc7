"""Stops a run before it spends more than the `budget` of its pipeline file."""

from __future__ import annotations

import threading

from infra.budget import HOUR, Spent
from tasks.pipeline.node import StageNode
from tasks.plan.estimates import estimate
from tasks.run.context import RunContext
from tasks.run.job_size import job_size, num_gpus
from tasks.run.record import RunRecord

POLL_SECONDS = 0.5


def watch_budget(record: RunRecord, context: RunContext, ended: threading.Event) -> None:
    """Watch in a thread until `ended`. Jobs that cannot be done within what is left are not started."""
    if record.budget.limited:
        context.may_start = lambda node: _too_much(node, record, context)
        threading.Thread(target=_watch, args=(record, context, ended), name="budget", daemon=True).start()


def _watch(record: RunRecord, context: RunContext, ended: threading.Event) -> None:
    while not ended.wait(POLL_SECONDS):
        times, budget = record.times, record.budget
        over = budget.over(record.spent(), times.rate() * (budget.reserve + POLL_SECONDS))
        if over:
            record.stop(over)
            context.stop(f"stopped by {over}", max(budget.reserve, 1.0))
            return


def _too_much(node: StageNode, record: RunRecord, context: RunContext) -> str:
    """Why a stage cannot be done with what is left, or empty.

    A training run keeps what it did, so it needs more than the reserve; another stage all it ever took at the least.
    """
    times, budget = record.times, record.budget
    ranks, _, slots = job_size(node, context.slots.total)
    seconds = budget.reserve
    if not node.stage.distributed and (known := estimate(context.store, context.pipeline, node)) is not None:
        seconds += known.low
    each = Spent(0.0, slots, num_gpus(node, ranks)) + times.rate()
    over = budget.over(record.spent(), each * seconds)
    if over:
        record.stop(over)
    return f"it takes at least {seconds / HOUR:.2g} h, reserve included, too much for {over}" if over else ""
