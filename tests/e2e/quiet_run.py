"""Stages run one by one as a flow would run them, but without Prefect and with nobody looking."""

from __future__ import annotations

from pathlib import Path

from infra.launch.launcher import Launcher
from infra.launch.slots import Slots
from infra.store import Store
from infra.wandb_replay import WandbReplay
from tasks.pipeline.dag import Pipeline
from tasks.run.context import RunContext


def quiet_context(pipeline: Pipeline, store: Store, launcher: Launcher, folder: Path, slots: int = 2) -> RunContext:
    """What `execute_stage` needs; job files go to `folder`."""
    return RunContext(
        run="quiet",
        pipeline=pipeline.name,
        store=store,
        launcher=launcher,
        slots=Slots(slots),
        folder=folder,
        producer={},
        notify=lambda *args, **news: None,
        tracking=WandbReplay(pipeline.tracking, project=pipeline.name, group="quiet", folder=folder),
    )
