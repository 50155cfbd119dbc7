"""The first stages of a run, begun while Prefect and its server are still starting.

Importing Prefect and starting a temporary server take many times longer than a light stage. So what is ready begins at
once, each stage in a thread, and what becomes ready while Prefect is not there follows. As soon as the flow is there it
alone decides what begins: its task for a stage that began here waits for that stage, and says in the UI when it began.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime

from infra.artifacts import ArtifactRef
from infra.errors import ForgelineError
from tasks.pipeline.node import StageNode
from tasks.pipeline.stopped import stopped_by
from tasks.run.context import RunContext
from tasks.run.execute import StageResult, execute_stage

OnEnd = Callable[[str, StageResult | ForgelineError], None]


@dataclass
class Begun:
    """A stage that began before its task. `ended`: set, like `began` in UTC, once `result` is there."""

    began: datetime
    ended: datetime | None = None
    result: Future[StageResult] = field(default_factory=Future)


class HeadStart:
    """Begins stages until `hand_over`. A stage that failed here fails its task's first attempt; retries are Prefect's.

    made: artifacts by name; filled with those made here. on_end: called with how each stage ended, from its thread.
    """

    def __init__(
        self, nodes: Collection[StageNode], made: dict[str, ArtifactRef], context: RunContext, on_end: OnEnd
    ) -> None:
        self._nodes, self._made, self._context, self._on_end = nodes, made, context, on_end
        self._lock = threading.Lock()
        self._begun: dict[str, Begun | None] = {}
        self._threads: list[threading.Thread] = []
        self._handed_over = False

    def begin(self) -> None:
        """Begin what is ready: all its inputs are there, the optional ones too, and no gate stopped it."""
        with self._lock:
            if self._handed_over or self._context.stopping.is_set():
                return
            stopped = stopped_by(self._context.refused, self._nodes)
            for node in self._nodes:
                if node.name not in self._begun and node.name not in stopped and set(node.needs) <= set(self._made):
                    self._begun[node.name] = begun = Begun(datetime.now(UTC))
                    thread = threading.Thread(target=self._run, args=(node, begun), name=node.name, daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def hand_over(self) -> None:
        """Begin no more stages; those that run go on."""
        with self._lock:
            self._handed_over = True

    def take(self, name: str) -> Begun | None:
        """The stage, if it began here and nobody took it before: a second attempt is a new one."""
        with self._lock:
            begun, self._begun[name] = self._begun.get(name), None
            return begun

    def close(self) -> None:
        """Begin no more, and wait for those that run."""
        self.hand_over()
        for thread in self._threads:
            thread.join()

    def _run(self, node: StageNode, begun: Begun) -> None:
        try:
            result = execute_stage(node, self._made, self._context)
            self._on_end(node.name, result)
            if not result.refused:
                self._made[node.name] = result.manifest.ref
        except ForgelineError as error:
            self._on_end(node.name, error.within(f"stage {node.name}"))
            begun.ended = datetime.now(UTC)
            begun.result.set_exception(error)
        except BaseException as error:  # a bug: the task raises it, as it would have without this thread
            begun.ended = datetime.now(UTC)
            begun.result.set_exception(error)
        else:
            begun.ended = datetime.now(UTC)
            self.begin()  # what waited for it, before its own task learns of it
            begun.result.set_result(result)
