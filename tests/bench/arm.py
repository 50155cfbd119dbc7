"""An arm: one way to train the workload, in a fresh process of its own that works only when it is told to.

Run as a program (`python -m tests.bench.arm FD`) this is the child. It reads what to train from the connection FD and
calls `run(workload, gate, folder)` of a file in `tests/bench/arms/`, which returns figures of its own.
"""

from __future__ import annotations

import importlib
import sys
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

from tests.bench import ranks
from tests.bench.child import Child, Failure
from tests.bench.gate import Block, Gate
from tests.bench.memory import ChildMemory
from tests.bench.workload import Workload, cores

PATIENCE = 900.0
NAMES = ("forgeline_train", "torch_loop", "deepspeed_loop", "hf_trainer", "checkpoint_stall", "upload_slowdown")


class Arm:
    """A child process that trains `workload` in the way named `name`. Use as a context manager: leaving it ends it."""

    def __init__(
        self,
        name: str,
        workload: Workload,
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        watch_children: bool = False,
    ) -> None:
        self.name, self.workload, self.folder = name, workload, folder
        self.losses: list[float] = []
        threads = str(max(1, cores() // workload.ranks))
        variables = {
            **{f"{library}_NUM_THREADS": threads for library in ("OMP", "MKL", "OPENBLAS")},
            "OMP_WAIT_POLICY": "PASSIVE",  # an arm that waits for its turn must not spin
            "TOKENIZERS_PARALLELISM": "false",
            **(environment or {}),
        }
        self.child = Child(name, "tests.bench.arm", folder, variables, PATIENCE)
        self.process, self.link = self.child.process, self.child.link
        self.children = ChildMemory(self.process.pid) if watch_children else None
        self.link.send((name, workload, folder))

    def __enter__(self) -> Arm:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.children is not None:
            self.children.stop()
        self.child.end()

    def warm_up(self) -> Block:
        """Wait until the arm has made its warm-up steps and stands still."""
        return self._block()

    def block(self) -> Block:
        """Let it make one block of steps."""
        self.link.send("go")
        return self._block()

    def matrix_rate(self) -> float:
        """Let it measure the machine's matrix product, in its process and on its threads."""
        self.link.send("matrix")
        return float(self.child.receive())

    def finish(self) -> dict[str, float]:
        """After the last block: let it end as a training run ends, and tell its own figures."""
        self.link.send("go")
        figures: dict[str, float] = self.child.receive()
        return figures

    def _block(self) -> Block:
        block: Block = self.child.receive()
        self.losses += block.losses
        return block


def main(descriptor: int) -> None:
    """The child: run the arm the parent names, and answer with its figures or its failure."""
    link = Connection(descriptor)
    name, workload, folder = link.recv()
    if name not in NAMES:
        raise ValueError(f"no arm {name!r}; there are {', '.join(NAMES)}")
    try:
        with ranks.followers(name, workload, folder):
            figures = ranks.train(name, workload, Gate(link, workload), folder)
    except BaseException:
        link.send(Failure(traceback.format_exc(limit=-8)))
        raise
    link.send(figures)
    time.sleep(PATIENCE)  # the parent ends it, so that a slow exit of one arm does not fall into the turn of another


if __name__ == "__main__":
    # The classes that travel over the connection must be those of the module, not of `__main__`.
    importlib.import_module("tests.bench.arm").main(int(sys.argv[1]))
