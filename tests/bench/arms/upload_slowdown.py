"""Forgeline's `train()` with a checkpoint being stored in about half of its steps, until enough have been.

A snapshot is taken once as many quiet steps have passed as the last one was being stored for. The store is a folder, or
what FORGELINE_BENCH_STORE names. Leaves `found.json` in its folder: for every checkpoint the seconds of the steps that
ran beside it from begin to end, and those of the quiet steps just before and after; a snapshot's own stall is taken off.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from infra.checkpoints import CheckpointStore
from infra.errors import Preempted
from infra.open_store import open_store
from tasks.objective import objective
from tasks.training.loop.train import train
from tests.bench.arms.forgeline_train import training_params
from tests.bench.gate import Gate
from tests.bench.storing import WatchedCheckpoints, When, watch
from tests.bench.workload import Workload
from tests.stages.jobs import make_job

FEWEST_QUIET = 4


class Alternating(WatchedCheckpoints):
    """Saves when it has been quiet for as long as the last one took, instead of every so many steps."""

    quiet = 0
    beside = FEWEST_QUIET

    def due(self, step: int) -> bool:
        return self.quiet >= max(FEWEST_QUIET, self.beside)

    def step_ended(self) -> When:
        when = super().step_ended()
        if when == "quiet":
            self.quiet += 1
        else:
            self.beside, self.quiet = (1 if self.quiet else self.beside + 1), 0
        return when


def run(workload: Workload, gate: Gate, folder: Path) -> dict[str, float]:
    watch(Alternating)
    marks: list[When] = []
    params = training_params(workload)

    def enough() -> bool:
        return len(cycles([1.0] * len(marks), marks)) >= workload.blocks and marks[-1] == "quiet"

    job = make_job(
        folder / "job",
        params,
        execution={"zero_stage": workload.zero_stage, "device": "cpu"},
        progress=lambda step, total, **values: marks.append(WatchedCheckpoints.made.step_ended()),
        stop_requested=enough,
        store=folder / "store",
    )
    if url := os.environ.get("FORGELINE_BENCH_STORE"):
        checkpoints = CheckpointStore(open_store(url), "kind", "0" * 64)
        job = dataclasses.replace(job, checkpoints=checkpoints)
    try:
        train(job, workload.model(), objective("causal_lm"), workload.features(), [], params)
        raise RuntimeError(f"{workload.total_steps} steps were not enough for {workload.blocks} checkpoints")
    except Preempted:
        lines = [json.loads(line) for line in (job.records / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = [line["seconds"] - line.get("checkpoint_stall", 0.0) for line in lines]
    found = {
        "cycles": cycles(seconds, marks)[: workload.blocks],
        "storing_share": sum(mark != "quiet" for mark in marks) / len(marks),
    }
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
    return {}


def cycles(seconds: list[float], marks: list[When]) -> list[tuple[list[float], list[float]]]:
    """(steps beside it, quiet steps around it) of every checkpoint; the first, which allocates, is left out."""
    runs: list[tuple[When, list[float]]] = []
    for mark, value in zip(marks, seconds, strict=True):
        if mark == "mixed":
            continue
        if not runs or runs[-1][0] != mark:
            runs.append((mark, []))
        runs[-1][1].append(value)
    found = [
        (values, [*runs[at - 1][1], *runs[at + 1][1]])
        for at, (mark, values) in enumerate(runs[:-1])
        if mark == "storing" and at
    ]
    return found[1:]
