"""Metrics of a job. The truth is one JSONL file per job, written by rank 0; W&B is fed from that file by a process of
its own (`infra/wandb_replay.py`), so that a slow, missing or dying W&B can neither stop nor slow a training step.

    {"step": 10, "seconds": 1.532, "values": {"loss": 4.2, "learning_rate": 0.0004}}
    {"summary": {"validation_loss": 4.1}}

A line is handed to the kernel in one write when it is logged: SIGKILL loses nothing that was logged and tears at most
the last line, which readers skip and the next writer cuts off. Numbers JSON has no word for are the strings "NaN",
"Infinity" and "-Infinity".
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field

from infra.errors import StageError
from infra.execution import Settings
from infra.json_values import parse_json

Mode = Literal["online", "offline", "disabled"]
STRICTER: tuple[Mode, ...] = ("online", "offline", "disabled")
ONLINE = ("online", "run", "shared")
DISABLED = ("disabled", "disable", "off", "no", "none", "false", "0", "never")
NO = ("false", "0", "no", "off", "f", "n")
"""Values of WANDB_DISABLED that do not switch W&B off."""


class TrackingSettings(Settings):
    """Where metrics are shown besides the run's own files: Weights & Biases. Never part of a result's identity."""

    project: str | None = Field(None, description="W&B project. None: the pipeline's name.")
    entity: str | None = Field(None, description="W&B user or team. None: the account's default.")
    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto",
        description="`auto`: WANDB_MODE if set, else online when WANDB_API_KEY is set, else offline (a folder for "
        "`wandb sync`). `online` falls back to offline when W&B cannot be reached. Where WANDB_MODE or WANDB_DISABLED "
        "forbids it, nothing is uploaded, whatever is set here.",
    )

    def resolved_mode(self, environ: Mapping[str, str]) -> Mode:
        """The mode in this environment: the stricter of what is said here and there."""
        said = asked_by(environ)
        if self.mode == "auto":
            return said or ("online" if environ.get("WANDB_API_KEY") else "offline")
        return permitted(self.mode, environ)


def permitted(mode: Mode, environ: Mapping[str, str]) -> Mode:
    """`mode`, or what the environment says where that lets less out."""
    return max(mode, asked_by(environ) or "online", key=STRICTER.index)


def asked_by(environ: Mapping[str, str]) -> Mode | None:
    """The mode that the environment asks for, None if it does not. Only what plainly says so goes online.

    Cases, blanks and quotes around a value do not matter; a value that nobody knows was meant to say something else
    than online.
    """
    off = _plainly(environ.get("WANDB_DISABLED", ""))
    if off and off not in NO:
        return "disabled"
    mode = _plainly(environ.get("WANDB_MODE", ""))
    if not mode:
        return None
    return "online" if mode in ONLINE else "disabled" if mode in DISABLED else "offline"


def _plainly(value: str) -> str:
    return value.strip().strip("'\"").strip().casefold()


class Tracker(Protocol):
    """Receives a job's metrics."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics at optimizer step `step`; steps may repeat after a resume, the later line counts."""
        ...

    def summary(self, values: Mapping[str, float]) -> None:
        """Final figures, one per name."""
        ...

    def close(self) -> None:
        """Nothing follows."""
        ...


class NullTracker:
    """Drops everything."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        return

    def summary(self, values: Mapping[str, float]) -> None:
        return

    def close(self) -> None:
        return


class JobTracker:
    """Appends to the JSONL at `path`; with None (every rank but the first) it drops everything.

    About 10 microseconds a line; there is no fsync, so a power cut (not a kill) may lose the last seconds.
    """

    def __init__(self, path: Path | None) -> None:
        self._started = time.monotonic()
        self._fd = None
        if path is not None:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            _cut_torn_tail(self._fd)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        seconds = round(time.monotonic() - self._started, 3)
        self._write({"step": step, "seconds": seconds, "values": {k: _plain(v) for k, v in values.items()}})

    def summary(self, values: Mapping[str, float]) -> None:
        self._write({"summary": {name: _plain(value) for name, value in values.items()}})

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _write(self, line: dict[str, Any]) -> None:
        if self._fd is not None:
            os.write(self._fd, json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n")


@dataclass(frozen=True)
class Row:
    """One logged step; `seconds` since the writing process opened the file."""

    step: int
    seconds: float
    values: dict[str, float]


@dataclass
class Metrics:
    """What a metrics file holds: rows in step order, each step once, and the merged summary."""

    rows: list[Row] = field(default_factory=list)
    summary: dict[str, float] = field(default_factory=dict)


def parse_line(line: bytes) -> Row | dict[str, float]:
    """A row, or the values of a summary line. Raises ValueError if it is neither."""
    data = parse_json(line)
    try:
        if "summary" in data:
            return {name: float(value) for name, value in data["summary"].items()}
        values = {name: float(value) for name, value in data["values"].items()}
        return Row(int(data["step"]), float(data["seconds"]), values)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"neither a step nor a summary: {error}") from error


def read_metrics(path: Path) -> Metrics:
    """All metrics in a file that may still be written to; empty if there is none.

    Values logged again for a step (after a resume) replace the earlier ones name by name. Raises StageError for a line
    in the middle that is not ours.
    """
    try:
        *lines, _torn = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return Metrics()
    found, rows = Metrics(), dict[int, Row]()
    for number, line in enumerate(lines, 1):
        try:
            parsed = parse_line(line)
        except ValueError as error:
            where = f"{path}:{number}"
            raise StageError(f"not a metrics line: {error}", where=where, hint="Delete the line to read on.") from error
        if isinstance(parsed, Row):
            earlier = rows.get(parsed.step)
            values = {**earlier.values, **parsed.values} if earlier else parsed.values
            rows[parsed.step] = Row(parsed.step, parsed.seconds, values)
        else:
            found.summary.update(parsed)
    found.rows = [rows[step] for step in sorted(rows)]
    return found


def _plain(value: float) -> float | str:
    number = float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _cut_torn_tail(fd: int) -> None:
    """Remove what follows the last newline: a writer that was killed in the middle of a line."""
    end = size = os.lseek(fd, 0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(fd, end)
