"""How much of a machine a stage's job takes."""

from __future__ import annotations

import os
from pathlib import Path

from tasks.pipeline.node import StageNode


def num_gpus(node: StageNode, ranks: int) -> int:
    """GPUs that a stage's job takes on this machine: one a rank of a training run, unless it was sent to the CPU."""
    if not node.stage.distributed or node.execution.device == "cpu":
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return min(ranks, len([name for name in visible.split(",") if name]))
    return min(ranks, len(list(Path("/dev").glob("nvidia[0-9]*"))))


def job_size(node: StageNode, cores: int) -> tuple[int, int, int]:
    """(ranks, threads per rank, slots taken) of a stage on a machine with `cores` cores."""
    ranks = node.execution.processes if node.stage.distributed else 1
    if node.execution.threads == "auto":
        threads = max(1, cores // ranks) if node.stage.distributed or node.stage.exclusive else 1
    else:
        threads = node.execution.threads
    return ranks, threads, cores if node.stage.exclusive else min(cores, ranks * threads)
