"""Peak resident memory of a training with checkpoints beside the bare loop's."""

from __future__ import annotations

import numpy as np

from tests.bench.arm import Arm
from tests.bench.result import Figure, Measurement, Row, Settings
from tests.bench.workload import Workload

REPEATS = 3
ALLOWED_MB = 64.0
SNAPSHOT_BYTES = 3 * 4  # weights and two moments in fp32
MB = 1e6


def peak(name: str, workload: Workload, settings: Settings, repeat: int) -> float:
    """Peak of the process, and what its children held for themselves at most."""
    folder = settings.folder / f"{name}-{repeat}"
    with Arm(name, workload, folder, watch_children=True) as arm:
        arm.warm_up()
        found = max(arm.block().peak_mb for _ in range(workload.blocks))
        assert arm.children is not None
        return found + arm.children.peak_mb


def measure(settings: Settings) -> Measurement:
    workload = Workload(steps=min(settings.steps, 6), blocks=2)
    parameters, _ = workload.size()
    snapshot = parameters * SNAPSHOT_BYTES / MB
    ours, bare = [], []
    for repeat in range(REPEATS):
        ours.append(peak("forgeline_train", workload, settings, repeat))
        bare.append(peak("torch_loop", workload, settings, repeat))
    beyond = [a - b - snapshot for a, b in zip(ours, bare, strict=True)]
    return Measurement(
        value=float(np.median(beyond)),
        low=min(beyond),
        high=max(beyond),
        interval="min-max",
        figures=[
            Figure("forgeline", float(np.median(ours)), "MB"),
            Figure("torch_loop", float(np.median(bare)), "MB"),
            Figure("one snapshot", snapshot, "MB"),
        ],
    )


ROWS = [
    Row(
        "memory",
        "peak resident memory of Forgeline (VmHWM, and what child processes hold for themselves) less the bare torch "
        "loop's and less one snapshot (weights and two moments in fp32), MB of 10^6 bytes",
        ALLOWED_MB,
        "MB",
        measure,
        at_least=False,
    )
]
