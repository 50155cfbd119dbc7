"""The launcher protocol: how a job reaches processes. Local today; Slurm, Kubernetes and Ray implement the same calls.

A job is described by a `JobSpec`: a job file (JSON, read by `tasks.run.worker`), the number of ranks, and where logs
go.
Exit codes are the contract back: 0 done, 75 preempted (resumable), anything else failed.

A training run over several nodes is one job on each of them, submitted by the node's own launcher: the same spec but
for `node_rank` and `folder`. The ranks meet at node 0 and form one process group:

    JobSpec("base", folder, ranks=8, nodes=2, node_rank=0, master_addr="10.0.0.1", master_port=29400, warm=True)
    JobSpec("base", folder, ranks=8, nodes=2, node_rank=1, master_addr="10.0.0.1", master_port=29400, warm=True)

Each launcher answers for its own ranks. Where a rank of one node dies, those of the others fail in their next
collective; asked to stop on one node, all of them save their state and exit 75. Both parts are then submitted again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from infra.errors import UsageError


@dataclass(frozen=True)
class JobSpec:
    """One stage's processes on one node. `folder` holds job.json, log.txt, events.jsonl and outcome-<rank>.json.

    ranks: processes on this node, the same number on every node.
    nodes, node_rank: how many parts the job has, and which of them this is.
    master_addr, master_port: where the ranks meet, on node 0. Without a port (one node only) a free one is taken.
    """

    name: str
    folder: Path
    entry: str = "tasks.run.worker:main"
    ranks: int = 1
    threads: int = 1
    warm: bool = False
    env: dict[str, str] = field(default_factory=dict)
    nodes: int = 1
    node_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.node_rank < self.nodes:
            raise UsageError(
                f"node_rank {self.node_rank} is not one of {self.nodes} node(s)",
                where=f"job {self.name}",
                hint="Nodes are counted from 0.",
            )
        if self.nodes > 1 and self.master_port is None:
            raise UsageError(
                f"a job of {self.nodes} nodes needs a port to meet on",
                where=f"job {self.name}",
                hint="Set master_port to a free port of node 0, the same for every node.",
            )

    @property
    def first_rank(self) -> int:
        """RANK of this node's first process."""
        return self.node_rank * self.ranks

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"


class JobHandle(Protocol):
    """A submitted job. `reason`: one line on why it failed, empty while it runs and when it exited 0."""

    @property
    def reason(self) -> str: ...

    def wait(self, timeout: float | None = None) -> int | None:
        """Exit code once the job ended: 0 done, 75 preempted, else failed (negative: signal). None on time-out."""
        ...

    def cancel(self, grace: float = 5.0) -> None:
        """Ask the ranks to stop (SIGTERM), kill what is left after `grace` seconds, and return when all are gone."""
        ...

    def logs(self) -> str:
        """The end of the job's log, for an error message."""
        ...


class Launcher(Protocol):
    """Runs jobs somewhere."""

    def prestart(self, warm: bool = False) -> None:
        """Get ready for jobs of that warmth in the background, if the launcher can; returns at once."""
        ...

    def submit(self, spec: JobSpec) -> JobHandle:
        """Start the job's ranks and return at once."""
        ...

    def close(self) -> None:
        """End everything this launcher started."""
        ...
