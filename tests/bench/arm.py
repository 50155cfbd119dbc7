"""An arm: one way to train the workload, in a fresh process of its own that works only when it is told to.

Run as a program (`python -m tests.bench.arm FD`) this is the child. It reads what to train from the connection FD and
calls `run(workload, gate, folder)` of a file in `tests/bench/arms/`, which returns figures of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from tests.bench import ranks
from tests.bench.gate import Block, Gate
from tests.bench.memory import ChildMemory
from tests.bench.workload import Workload, cores

ROOT = Path(__file__).parents[2]
PATIENCE = 900.0
NAMES = ("forgeline_train", "torch_loop", "deepspeed_loop", "hf_trainer", "checkpoint_stall", "upload_slowdown")


class ArmFailed(Exception):
    """An arm died or raised; the message ends with what it wrote last."""


@dataclass(frozen=True)
class _Failure:
    text: str


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
        self.name, self.workload = name, workload
        self.folder = folder
        folder.mkdir(parents=True)
        self.log = folder / "log.txt"
        self.link, theirs = Pipe()
        self.losses: list[float] = []
        threads = str(max(1, cores() // workload.ranks))
        variables = {
            **os.environ,
            **{f"{library}_NUM_THREADS": threads for library in ("OMP", "MKL", "OPENBLAS")},
            "OMP_WAIT_POLICY": "PASSIVE",  # an arm that waits for its turn must not spin
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            **(environment or {}),
        }
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.arm", str(theirs.fileno())],
                cwd=ROOT,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
            )
        theirs.close()
        self.children = ChildMemory(self.process.pid) if watch_children else None
        self.link.send((name, workload, folder))

    def __enter__(self) -> Arm:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.children is not None:
            self.children.stop()
        others = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        for process in (self.process, *others):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        self.link.close()

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
        return float(self._receive())

    def finish(self) -> dict[str, float]:
        """After the last block: let it end as a training ends, and tell its own figures."""
        self.link.send("go")
        figures: dict[str, float] = self._receive()
        return figures

    def _block(self) -> Block:
        block: Block = self._receive()
        self.losses += block.losses
        return block

    def _receive(self) -> Any:
        try:
            if not self.link.poll(PATIENCE):
                raise ArmFailed(f"{self.name} said nothing for {PATIENCE:.0f} s{self._tail()}")
            message = self.link.recv()
        except (EOFError, ConnectionResetError) as error:
            raise ArmFailed(f"{self.name} died with code {self.process.wait()}{self._tail()}") from error
        if isinstance(message, _Failure):
            raise ArmFailed(f"{self.name} failed:\n{message.text}{self._tail()}")
        return message

    def _tail(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        return "\n".join(["; its log ends:", *lines])


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
        link.send(_Failure(traceback.format_exc(limit=-8)))
        raise
    link.send(figures)
    time.sleep(PATIENCE)  # the parent ends it, so that a slow exit of one arm does not fall into the turn of another


if __name__ == "__main__":
    # The classes that travel over the connection must be those of the module, not of `__main__`.
    importlib.import_module("tests.bench.arm").main(int(sys.argv[1]))
