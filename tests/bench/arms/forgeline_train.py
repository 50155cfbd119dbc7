"""Forgeline's own `train()` with all that a run has: journal, metrics file, progress events, checkpoints.

The gate sits behind the job's `progress`, which the loop calls once a step. A checkpoint falls into every block, two
steps after its begin, so that its writing is paid for by the block that took it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from infra.tracking import JobTracker
from tasks.data.tokens.packing import PackedRows, one_to_a_row, save_plan
from tasks.objective import objective
from tasks.run.worker import Events
from tasks.training.loop.train import train
from tasks.training.settings import TrainingParams
from tests.bench.gate import Gate
from tests.bench.ranks import rank
from tests.bench.workload import BETAS, EPS, WEIGHT_DECAY, Workload
from tests.stages.jobs import make_job


def run(workload: Workload, gate: Gate, folder: Path) -> dict[str, float]:
    params = training_params(workload)
    place = folder / f"job-{rank()}"
    events = Events(_made(place) / "events.jsonl")

    def progress(step: int, total: int, **values: float) -> None:
        events.progress(step, total, **values)
        gate(values["loss"])

    job = make_job(
        place,
        params,
        execution={"zero_stage": workload.zero_stage, "device": "cpu", "checkpoint": {"every": workload.steps}},
        progress=progress,
        rank=rank(),
        world_size=workload.ranks,
        store=folder / "store",
    )
    job = dataclasses.replace(job, tracker=JobTracker(place / "metrics.jsonl"))
    train(job, workload.model(), objective("causal_lm"), packed(workload, place / "tokens"), [], params)
    if rank():
        return {}
    lines = [json.loads(line) for line in (job.records / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    stalls = [line["checkpoint_stall"] for line in lines[workload.warmup :] if line.get("checkpoint_stall")]
    return {"checkpoints": float(len(stalls)), "stall_seconds": sum(stalls)}


def training_params(workload: Workload) -> TrainingParams:
    """The workload as Forgeline's parameters; every arm trains with these constants."""
    return TrainingParams.model_validate(
        {
            "max_steps": workload.total_steps,
            "global_batch_size": workload.batch,
            "learning_rate": workload.learning_rate,
            "schedule": {"name": "constant", "warmup_ratio": 0.0},
            "optimizer": {"weight_decay": WEIGHT_DECAY, "betas": BETAS, "eps": EPS},
            "max_grad_norm": workload.max_grad_norm,
            "seed": workload.seed,
        }
    )


def packed(workload: Workload, folder: Path) -> PackedRows:
    """The workload's rows as a `tokens` artifact holds them, memory-mapped."""
    rows = [feature["input_ids"] for feature in workload.features()]
    lengths = np.array([len(row) for row in rows], np.int64)
    save_file({"ids": np.concatenate(rows), "lengths": lengths}, _made(folder / "train") / "0.safetensors")
    save_plan(one_to_a_row(lengths, workload.context), [lengths], folder / "train.rows.safetensors")
    return PackedRows(folder, "train")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
