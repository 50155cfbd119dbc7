"""A benchmark's child process: a module run as a program that talks over a connection and works only when told to."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]


class ArmFailed(Exception):
    """An arm died or raised; the message ends with what it wrote last."""


@dataclass(frozen=True)
class Failure:
    """What a child sends instead of an answer: the traceback."""

    text: str


class Child:
    """The parent's end. `python -m MODULE FD` is started, with its output in `folder/log.txt`."""

    def __init__(self, name: str, module: str, folder: Path, environment: Mapping[str, str], patience: float) -> None:
        self.name, self.patience = name, patience
        folder.mkdir(parents=True)
        self.log = folder / "log.txt"
        self.link, theirs = Pipe()
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno())],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path, **environment},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
            )
        theirs.close()

    def receive(self) -> Any:
        """Its next answer. Raises ArmFailed if it failed, died, or said nothing for too long."""
        try:
            if not self.link.poll(self.patience):
                raise ArmFailed(f"{self.name} said nothing for {self.patience:.0f} s{self._tail()}")
            message = self.link.recv()
        except (EOFError, ConnectionResetError) as error:
            raise ArmFailed(f"{self.name} died with code {self.process.wait()}{self._tail()}") from error
        if isinstance(message, Failure):
            raise ArmFailed(f"{self.name} failed:\n{message.text}{self._tail()}")
        return message

    def end(self) -> None:
        """End it and all that it started."""
        others = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        for process in (self.process, *others):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        self.link.close()

    def _tail(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        return "\n".join(["; its log ends:", *lines])
