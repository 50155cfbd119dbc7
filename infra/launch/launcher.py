"""The launcher protocol: how a job reaches processes. Local today; Slurm, Kubernetes and Ray implement the same calls.

A job is described by a `JobSpec`: a job file (JSON, read by `tasks.worker`), the number of ranks, and where logs go.
Exit codes are the contract back: 0 done, 75 preempted (resumable), anything else failed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class JobSpec:
    """One stage's processes. `folder` holds job.json, log.txt, events.jsonl and outcome.json."""

    name: str
    folder: Path
    entry: str = "tasks.worker:main"
    ranks: int = 1
    threads: int = 1
    warm: bool = False
    env: dict[str, str] = field(default_factory=dict)

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
