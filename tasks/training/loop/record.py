"""What a training run writes down: a line for every step, every evaluation and every incident, in `records/`.

    train.jsonl        step, loss, learning rate, gradient norm, units of work/s, MFU, memory, waits, seconds
    validation.jsonl   step, loss and the objective's metrics, work and seconds trained so far
    incidents.jsonl    updates skipped, ways back, micro-batches made smaller: with the reason

The same values go to the tracker (W&B) and the live view. Only rank 0 writes.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tasks.metrics.direction import greater_is_better
from tasks.stage import Job
from tasks.training.loop.journal import Journal
from tasks.training.loop.throughput import ModelFlops, memory_mb


class Record:
    """The journals of one training on one rank; methods do nothing on ranks other than the first."""

    def __init__(
        self,
        job: Job[Any],
        unit: str,
        flops: ModelFlops | None,
        machine_flops: float,
        total: int,
        device: torch.device,
    ) -> None:
        """unit: of work, whose speed is measured (`Objective.work_unit`)."""
        self.job, self.flops, self.machine_flops, self.total, self.device = job, flops, machine_flops, total, device
        self.unit, self.speed = unit, f"{unit}_per_second"
        self.writes = job.rank == 0
        self.journals = {n: Journal(job.records / f"{n}.jsonl") for n in ("train", "validation", "incidents")}

    def step(self, step: int, values: Mapping[str, float | None], *, work: float, length: int, seconds: float) -> None:
        """After step `step` (from 1). values: what the loop knows; length: of its longest example, in units of work."""
        if not self.writes:
            return
        entry: dict[str, Any] = {
            "step": step,
            **values,
            self.speed: work / seconds,
            "mfu": self._mfu(work, length, seconds),
            "memory_mb": memory_mb(self.device),
            "seconds": seconds,
        }
        self.journals["train"].append(entry)
        self.job.progress(step, self.total, loss=entry["loss"], **{self.speed: entry[self.speed]})
        self.job.tracker.log(step, {k: v for k, v in entry.items() if k != "step" and v is not None})

    def _mfu(self, work: float, length: int, seconds: float) -> float | None:
        if self.flops is None:
            return None
        return work * self.flops.per_unit(length) / seconds / self.machine_flops

    def evaluation(
        self, step: int, values: Mapping[str, float], *, work: float, trained: float, seconds: float
    ) -> None:
        """The validation split after step `step`, `work` and `trained` seconds of training."""
        if self.writes and values:
            entry = {"step": step, **values, self.unit: work, "trained_seconds": trained, "seconds": seconds}
            self.journals["validation"].append(entry)
            self.job.tracker.log(step, {f"validation_{k}": v for k, v in values.items()})

    def incident(self, step: int, what: str, **details: Any) -> None:
        """Something that a reader of the result has to know of."""
        if self.writes:
            self.journals["incidents"].append({"step": step, "what": what, **details})

    def files(self) -> dict[str, Path]:
        """The journals by the names they have in a checkpoint; not those nothing was written to."""
        return {f"journals/{name}.jsonl": j.path for name, j in self.journals.items() if j.size()}

    def restore(self, folder: Path, *, keep_incidents: bool = False) -> None:
        """Go on from the journals of a checkpoint; on the way back within a run, incidents stay."""
        for name, journal in self.journals.items():
            source = folder / f"journals/{name}.jsonl"
            if self.writes and source.exists() and not (keep_incidents and name == "incidents"):
                journal.restore(source)

    def good_losses(self, count: int) -> list[float]:
        """The last `count` losses whose update was made, oldest first."""
        made = (entry["loss"] for entry in self.journals["train"].entries() if not entry.get("skipped"))
        return list(deque(made, maxlen=count))

    def summary(self) -> dict[str, float]:
        """Medians over the steps, how often something happened, and the way to each target of `execution.targets`."""
        steps = [(entry[self.speed], entry["mfu"]) for entry in self.journals["train"].entries()]
        found = {self.speed: float(statistics.median([speed for speed, _ in steps] or [0.0]))}
        if known := [mfu for _, mfu in steps if mfu is not None] or ([] if self.flops is None else [0.0]):
            found["mfu"] = float(statistics.median(known))
        incidents = [entry["what"] for entry in self.journals["incidents"].entries()]
        for what, name in (("skipped", "skipped_updates"), ("went back", "rollbacks")):
            if what in incidents:
                found[name] = float(incidents.count(what))
        for metric, target in self.job.execution.targets.items():
            found |= convergence(list(self.journals["validation"].entries()), metric, target, self.unit)
        return found

    def close(self) -> None:
        for journal in self.journals.values():
            journal.close()


def convergence(evaluations: list[dict[str, Any]], metric: str, target: float, unit: str) -> dict[str, float]:
    """Steps, seconds and `unit`s of training until `metric` first reached `target`; empty if it never did.

    evaluations: lines of validation.jsonl. How exact the figures are depends on `eval_every`.
    """
    for entry in evaluations:
        value = entry.get(metric)
        if value is not None and (value >= target if greater_is_better(metric) else value <= target):
            marks = {"steps": entry["step"], "seconds": entry["trained_seconds"], unit: entry[unit]}
            return {f"{name}_to_{metric}_{target:g}": float(number) for name, number in marks.items()}
    return {}
