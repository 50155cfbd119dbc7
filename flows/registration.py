"""What Prefect has to know of a pipeline with a `deploy` section, as plain data: two deployments and the automations.

    <pipeline>/run       the pipeline itself, on its schedules, with a typed form for its parameters
    <pipeline>/watch     one look at the sources, every so often; it starts `run` where there are new data worth it

An event `dataset.updated` of the resource `forgeline.pipeline.<pipeline>` starts a look at once. A run that gave no
sign of life for three minutes is marked Crashed, and so is one that a worker took and that did not begin within ten.
All of it is compared and applied by `flows/deploy.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.pipeline.dag import Pipeline
from tasks.pipeline.deploy import Schedule
from tasks.pipeline.parameter_form import form

RUN, WATCH = "run", "watch"
UPDATED = "dataset.updated"
SILENCE = 180
"""Seconds without a heartbeat (one comes every 30) after which a run counts as dead.

On a machine that is eight times too busy, with a server that waits for SQLite, living ones were silent for a minute.
"""
BEGINNING = 600
"""Seconds for a run to begin once a worker took it, or to end once it was cancelled: then its worker is dead.

An image that is pulled or a node that is added may take minutes; until then the run holds the deployment's only slot.
"""
HUSH = 5
"""Seconds in which events that say the same start one look."""
ANCHOR = "2000-01-01T00:00:00Z"
"""Intervals are counted from here, so that deploying again shifts no schedule."""
RULES_BEGIN = "DTSTART:20200101T000000"
"""Where Prefect begins a recurrence rule that does not say it."""
STEP = "prefect.deployments.steps.set_working_directory"
"""Where a worker begins; without such a step it would copy that folder first."""
Body = dict[str, Any]


@dataclass(frozen=True)
class Registration:
    """What is to be registered: the deployments by name, and the automations, whose actions name a deployment."""

    pipeline: str
    pool: str
    deployments: dict[str, Body]
    automations: dict[str, Body]


def resource(pipeline: str) -> str:
    """The resource id in events about a pipeline's data."""
    return f"forgeline.pipeline.{pipeline}"


def registration(pipeline: Pipeline, *, working_dir: Path, version: str | None) -> Registration:
    """What Prefect has to know of `pipeline`, whose runs start in `working_dir`. version: the commit it is at."""
    deploy = pipeline.deploy
    file = str(pipeline.path.resolve())
    common = {
        "version": version,
        "work_pool_name": deploy.pool,
        "pull_steps": [{STEP: {"directory": str(working_dir.resolve())}}],
        "enforce_parameter_schema": True,
        "concurrency_limit": 1,
    }
    deployments = {
        RUN: {
            **common,
            "entrypoint": "flows.deployed.run_deployed",
            "description": pipeline.description,
            "tags": sorted({*deploy.tags, pipeline.name}),
            "parameters": {"file": file, "settings": form(pipeline)().model_dump(mode="json")},
            "parameter_openapi_schema": _schema(pipeline, file),
            "schedules": [schedule_body(one) for one in deploy.schedules],
            "concurrency_options": {"collision_strategy": "ENQUEUE" if deploy.overlap == "queue" else "CANCEL_NEW"},
        }
    }
    automations = {
        "forgeline: a run that gives no sign of life has crashed": _crashed_after(BEATS, SILENCE, "no sign of life"),
        "forgeline: a run that was taken and does not begin has crashed": _crashed_after(
            TAKEN, BEGINNING, "its worker took it, and nothing came of it"
        ),
    }
    if deploy.watch is not None:
        deployments[WATCH] = {
            **common,
            "entrypoint": "flows.deployed.watch_deployed",
            "description": f"Looks at the sources of {pipeline.name}; new data worth it start a run.",
            "tags": sorted({*deploy.tags, pipeline.name, WATCH}),
            "parameters": {"file": file},
            "parameter_openapi_schema": {"type": "object", "properties": {"file": _file(file)}},
            "schedules": [schedule_body(Schedule(interval=deploy.watch.every))],
            # A look that is due while another goes on would see the same.
            "concurrency_options": {"collision_strategy": "CANCEL_NEW"},
        }
        automations[f"{pipeline.name}: look at the data when they are said to be new"] = _on_update(pipeline.name)
    return Registration(pipeline.name, deploy.pool, deployments, automations)


def _schema(pipeline: Pipeline, file: str) -> Body:
    settings = form(pipeline).model_json_schema(ref_template="#/definitions/{model}")
    definitions = settings.pop("$defs", {})
    properties = {
        "settings": {
            **settings,
            "title": "Settings",
            "position": 0,
            "description": "What differs from the pipeline file.",
        },
        "file": {**_file(file), "position": 1},
    }
    if not pipeline.deploy.parameters:
        del properties["settings"]
    return {"type": "object", "title": "Parameters", "properties": properties, "definitions": definitions}


def _file(file: str) -> Body:
    return {"type": "string", "title": "Pipeline file", "default": file, "description": "Read when the run starts."}


def schedule_body(schedule: Schedule) -> Body:
    """A schedule as Prefect gets it."""
    if schedule.cron is not None:
        rule: Body = {"cron": schedule.cron, "timezone": schedule.timezone, "day_or": True}
    elif schedule.rrule is not None:
        rule = {"rrule": _anchored(schedule.rrule), "timezone": schedule.timezone}
    else:
        rule = {"interval": schedule.interval, "anchor_date": ANCHOR, "timezone": schedule.timezone}
    return {"schedule": rule, "active": True}


def _anchored(rule: str) -> str:
    """With the DTSTART that Prefect adds where there is none, so that what it keeps does not differ from the file.

    It moves the anchor of rules of minutes and seconds along with the time, which only it can.
    """
    if "DTSTART" in rule.upper() or re.search(r"FREQ=(MINUTELY|SECONDLY)", rule, re.IGNORECASE):
        return rule
    return f"{RULES_BEGIN}\n{rule}"


def _on_update(pipeline: str) -> Body:
    return {
        "description": f"{UPDATED} of {resource(pipeline)} starts a look; equal ones do no harm.",
        "enabled": True,
        "trigger": {
            "type": "event",
            "expect": [UPDATED],
            "match": {"prefect.resource.id": resource(pipeline)},
            "for_each": [],
            "posture": "Reactive",
            "threshold": 1,
            # Fires at once, then not again for so long; a look lists later than that, so it misses nothing.
            "within": HUSH,
        },
        "actions": [{"type": "run-deployment", "source": "selected", "deployment": WATCH}],
    }


BEATS = ("prefect.flow-run.heartbeat", "prefect.flow-run.Running")  # it may die before its first beat
TAKEN = tuple(f"prefect.flow-run.{name}" for name in ("Pending", "Submitting", "InfrastructurePending", "Cancelling"))
"""By name, not by type: a worker gives Pending other names as it goes on, and each would pass for a beginning."""


def _crashed_after(after: tuple[str, ...], seconds: int, why: str) -> Body:
    return {
        "description": "The work it had under way goes on from its last checkpoint with the next run.",
        "enabled": True,
        "trigger": {
            "type": "event",
            "after": list(after),
            "expect": ["prefect.flow-run.*"],  # another heartbeat, or whatever end it comes to
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "for_each": ["prefect.resource.id"],
            "posture": "Proactive",
            "threshold": 1,
            "within": seconds,
        },
        "actions": [{"type": "change-flow-run-state", "state": "CRASHED", "message": f"{why} for {seconds} s"}],
    }
