"""Two nodes on one machine: a launcher (`node.py`) in a network namespace of its own each, joined by a veth pair.

The namespaces have no names: they end with the processes in them, so that a killed test leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
INTERFACE = "forge0"
ADDRESSES = ("10.231.0.1", "10.231.0.2")
TOOLS = ("ip", "unshare", "nsenter")
START_SECONDS = 120.0


class NotAllowed(Exception):
    """This machine does not let us make network namespaces; says why."""


class Node:
    """A launcher in a namespace of its own. One job at a time."""

    def __init__(self, folder: Path, rank: int, master_addr: str) -> None:
        self.rank = rank
        self.answers: queue.Queue[dict[str, Any]] = queue.Queue()
        folder.mkdir(parents=True)
        self.log = folder / "node.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["unshare", "--net", sys.executable, "-P", str(Path(__file__).with_name("node.py")), str(folder), str(rank), "2", master_addr],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(json.loads(line))

    def answer(self, seconds: float) -> dict[str, Any]:
        """Its next answer; TimeoutError if there is none in time."""
        try:
            return self.answers.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"node {self.rank} said nothing for {seconds} s\n{self.log.read_text()}") from None

    def ask(self, **what: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def rank_process(self) -> psutil.Process:
        """The one rank that runs here: a child of the supervisor that the warm server forked."""
        servers = [p for p in psutil.Process(self.process.pid).children() if "infra.launch.warm" in p.cmdline()]
        (rank,) = (rank for server in servers for supervisor in server.children() for rank in supervisor.children())
        return rank

    def network(self, *command: str) -> None:
        """`ip COMMAND` in the node's namespace."""
        run("nsenter", "--net", f"--target={self.process.pid}", "ip", *command)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class TwoNodes:
    """Both nodes, joined. Raises NotAllowed where the machine does not allow it."""

    def __init__(self, folder: Path) -> None:
        missing = [tool for tool in TOOLS if shutil.which(tool) is None]
        if missing:
            raise NotAllowed(f"{', '.join(missing)} not installed (iproute2, util-linux)")
        run("unshare", "--net", "true")
        self.nodes = [Node(folder / f"node-{rank}", rank, ADDRESSES[0]) for rank in (0, 1)]
        try:
            for node in self.nodes:
                node.answer(START_SECONDS)
            one, other = (str(node.process.pid) for node in self.nodes)
            run("ip", "link", "add", INTERFACE, "netns", one, "type", "veth", "peer", "name", INTERFACE, "netns", other)
            for node, address in zip(self.nodes, ADDRESSES, strict=True):
                node.network("address", "add", f"{address}/24", "dev", INTERFACE)
                node.network("link", "set", INTERFACE, "up")
                node.network("link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise

    def link(self, state: str) -> None:
        """Take the link between the nodes `down`, or `up` again. No process is told."""
        self.nodes[1].network("link", "set", INTERFACE, state)

    def ends(self, seconds: float) -> list[dict[str, Any]]:
        """How both jobs ended; TimeoutError if one has not within `seconds` from now."""
        deadline = time.monotonic() + seconds
        return [node.answer(max(0.0, deadline - time.monotonic())) for node in self.nodes]

    def close(self) -> None:
        for node in self.nodes:
            node.close()


def run(*command: str) -> None:
    """Raises NotAllowed with what the command said if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotAllowed(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
