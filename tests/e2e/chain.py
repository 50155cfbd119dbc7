"""`forgeline` as a user has it: a process of the real command line, over `tiny.yaml` and generated source files."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from infra.artifacts import Manifest
from infra.store import Store

ROOT = Path(__file__).parents[2]
WORDS = {
    "orchard": ["apple", "ripen", "branch", "harvest", "graft", "blossom"],
    "harbour": ["vessel", "anchor", "tide", "mooring", "cargo", "pilot"],
    "foundry": ["molten", "ingot", "furnace", "casting", "alloy", "slag"],
}


def write_project(folder: Path) -> Path:
    """`tiny.yaml` and its source files: three packages of 10 files of 4 functions. Returns the pipeline file."""
    drawn = random.Random(7)
    for package, words in WORDS.items():
        (folder / "source" / package).mkdir(parents=True)
        for number in range(10):
            functions = []
            for i in range(4):
                a, b, c = drawn.sample(words, 3)
                functions.append(
                    f"def {a}_{b}_{number}_{i}({b}, {c}={drawn.randrange(100)}):\n"
                    f'    """The {a} of each {b}."""\n'
                    f"    {a} = [{b} * {drawn.randrange(10)} for {c} in range({c})]\n"
                    f"    return sum({a}) + {drawn.randrange(1000)}\n"
                )
            (folder / "source" / package / f"{words[number % 6]}{number}.py").write_text("\n\n".join(functions))
    return Path(shutil.copy(Path(__file__).with_name("tiny.yaml"), folder))


class Forgeline:
    """A started `forgeline run`. `home` is in the environment of every process of it: that is how they are found.

    under: a command that runs it, such as `unshare` with its options.
    """

    def __init__(
        self, file: Path, store: str, home: Path, *overrides: str, under: Sequence[str] = (), **environment: str
    ) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "FORGELINE_", "WANDB_"))}
        sets = [part for override in overrides for part in ("--set", override)]
        self.began = time.monotonic()
        self.stderr = home / f"stderr-{time.monotonic_ns()}.txt"
        with self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*under, sys.executable, "-m", "flows.cli", "run", str(file), "--store", store, "--json", *sets],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=home,
                env={**kept, "FORGELINE_HOME": str(home), "PYTHONPATH": str(ROOT), **environment},
                start_new_session=True,
                # A shell that put the tests into the background has SIGINT ignored, and children inherit that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    def end(self, timeout: float = 120) -> Result:
        """Wait for its end."""
        out, _ = self.process.communicate(timeout=timeout)
        return Result(self.process.returncode, out.decode(), self.stderr.read_text(), time.monotonic() - self.began)

    def processes(self) -> list[psutil.Process]:
        """Every living process of this run, even one whose parent is gone."""
        return living(self.home)

    def kill(self) -> int:
        """SIGKILL to the whole tree; returns how many processes that were."""
        found = self.processes()
        for process in found:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()
        deadline = time.monotonic() + 5
        while (rest := self.processes()) and time.monotonic() < deadline:
            for process in rest:
                process.kill()
            time.sleep(0.02)
        assert not rest, f"still alive: {rest}"
        return len(found)


def ranks(run: Forgeline) -> list[psutil.Process]:
    """The rank processes of the training under way: children of the supervisor that the warm torch server forked."""
    (server,) = (
        p
        for p in run.processes()
        if p.cmdline()[3:6] == ["infra.launch.warm", "torch", "tasks.run.worker"] and p.parent().pid == run.process.pid
    )
    return [rank for supervisor in server.children() for rank in supervisor.children()]


def living(home: Path) -> list[psutil.Process]:
    """Processes that carry `home` as FORGELINE_HOME."""
    mark = f"FORGELINE_HOME={home}".encode()
    found = []
    for pid in psutil.pids():
        try:
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        except (OSError, psutil.Error):
            continue
    return found


class Result:
    """How a run ended."""

    def __init__(self, code: int, stdout: str, stderr: str, seconds: float) -> None:
        self.code, self.stdout, self.stderr, self.seconds = code, stdout, stderr, seconds

    @property
    def json(self) -> dict[str, Any]:
        """The last line of stdout."""
        data: dict[str, Any] = json.loads(self.stdout.splitlines()[-1])
        return data

    @property
    def actions(self) -> dict[str, str]:
        return {stage["name"]: stage["action"] for stage in self.json["stages"]}

    def must(self, code: int) -> Result:
        """Itself, if it ended with `code`; else an AssertionError with what it said."""
        assert self.code == code, f"exit {self.code}, expected {code}\n{self.stdout}\n{self.stderr[-6000:]}"
        return self


PARTS = {"prepared", "rows", "ids", "runs"}
"""Kinds of what data stages keep of single shards; they belong to no stage, and their files have no attempt."""


def manifests(store: Store) -> list[Manifest]:
    """Every artifact of a store that a stage made."""
    found = []
    for kind in sorted({*store.list("artifacts")} - PARTS):
        for key in store.list(f"artifacts/{kind}"):
            manifest = store.manifest(kind, key)
            if manifest is not None:
                found.append(manifest)
    return found


def attempts(store: Store) -> dict[str, list[str]]:
    """Attempt folders of every key: more than one is work done twice, or cut off."""
    return {
        f"{kind}/{key}": [name for name in store.list(f"artifacts/{kind}/{key}") if name != "manifest.json"]
        for kind in sorted({*store.list("artifacts")} - PARTS)
        for key in store.list(f"artifacts/{kind}")
    }
