"""What all stages of one run share, and the two ways to end the run before its end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.launch.launcher import JobSpec, Launcher
from infra.launch.slots import Slots
from infra.store import Store
from infra.wandb_replay import WandbReplay
from tasks.pipeline.node import StageNode

STOP_SECONDS = 5.0
"""For jobs to end when a run is cancelled."""
Notify = Callable[..., None]


@dataclass
class RunContext:
    """What all stages of one run share.

    cancelled: set by `cancel`: the run ends at once. stopping: set by `stop` too: no job is started any more, and those
    that run have `grace` seconds to save their state; `why` is logged.
    may_start: asked before a stage's job is started; says why if it may not.
    ready: whether a warm job would start at once; while it would not, its stage holds no slots and costs no core hours.
    inputs_store: where inputs are read, if not in the store that is written. relaunch: start a job that was cut short
    again, as long as it gets on. refused: gates that have refused; kept by whoever learns how stages end.
    """

    run: str
    pipeline: str
    store: Store
    launcher: Launcher
    slots: Slots
    folder: Path
    producer: dict[str, Any]
    notify: Notify
    tracking: WandbReplay
    cancelled: threading.Event = field(default_factory=threading.Event)
    stopping: threading.Event = field(default_factory=threading.Event)
    why: str = "cancelled"
    grace: float = STOP_SECONDS
    may_start: Callable[[StageNode], str] = lambda node: ""
    ready: Callable[[JobSpec], bool] = lambda spec: True
    refused: set[str] = field(default_factory=set)
    inputs_store: Store | None = None
    relaunch: bool = True

    def stop(self, why: str, grace: float) -> None:
        """End the run and lose nothing that can be saved."""
        self.why, self.grace = why, grace
        self.stopping.set()

    def cancel(self) -> None:
        """End the run now."""
        self.cancelled.set()
        self.stopping.set()
