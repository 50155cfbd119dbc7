"""The model's arithmetic over the matrix product that the same process reaches on the same threads, taken in turn."""

from __future__ import annotations

import contextlib

import numpy as np

from tests.bench.arm import Arm
from tests.bench.pairs import of_median
from tests.bench.result import Figure, Measurement, Row, Settings
from tests.bench.workload import Workload


def measure(settings: Settings) -> Measurement:
    workload = Workload(hidden=512, steps=settings.steps, blocks=settings.pairs)
    _, flops = workload.size()
    shares: dict[str, list[float]] = {}
    matrix: list[float] = []
    busy: list[float] = []
    with contextlib.ExitStack() as stack:
        arms = [
            stack.enter_context(Arm(name, workload, settings.folder / name))
            for name in ("forgeline_train", "torch_loop")
        ]
        for arm in arms:
            arm.warm_up()
        for _ in range(workload.blocks):
            for arm in arms:
                before = arm.matrix_rate()
                block = arm.block()
                busy.append(block.busy)
                rate = flops * workload.tokens_per_block / block.seconds
                possible = (before + arm.matrix_rate()) / 2
                shares.setdefault(arm.name, []).append(rate / possible)
                matrix.append(possible)
    ours = shares["forgeline_train"]
    gemm = float(np.median(matrix))
    return of_median(
        ours,
        figures=[
            Figure("matrix product", gemm / 1e9, "GFLOP/s"),
            Figure("forgeline", float(np.median(ours)) * gemm / 1e9, "GFLOP/s"),
            Figure("torch_loop", float(np.median(shares["torch_loop"])), "of the product"),
        ],
        busy=float(np.mean(busy)),
        details=dict(shares),
    )


ROWS = [
    Row(
        "mfu",
        "model FLOP/s of Forgeline at hidden 512 x 4 layers (6 x weights + attention, no recomputation) over an fp32 "
        "1024 x 1024 matrix product in the same process, measured before and after each block",
        0.50,
        "",
        measure,
    )
]
