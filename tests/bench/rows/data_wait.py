"""How much of a step goes into waiting for its batch, which a thread collates one step ahead."""

from __future__ import annotations

import json

import numpy as np

from tests.bench.arm import Arm
from tests.bench.pairs import of_median
from tests.bench.result import Figure, Measurement, Row, Settings
from tests.bench.workload import Workload


def measure(settings: Settings) -> Measurement:
    workload = Workload(steps=settings.steps, blocks=settings.pairs)
    with Arm("forgeline_train", workload, settings.folder / "arm") as arm:
        arm.warm_up()
        busy = [arm.block().busy for _ in range(workload.blocks)]
        arm.finish()
        journal = (arm.folder / "job-0/records/train.jsonl").read_text(encoding="utf-8").splitlines()
    lines = [json.loads(line) for line in journal[workload.warmup :]]
    waits, steps = (np.array([line[name] for line in lines]) for name in ("data_wait", "seconds"))
    blocks = zip(np.split(waits, workload.blocks), np.split(steps, workload.blocks), strict=True)
    shares = [float(wait.sum() / seconds.sum()) for wait, seconds in blocks]
    return of_median(
        shares,
        figures=[
            Figure("wait", float(np.median(waits)) * 1e3, "ms"),
            Figure("longest wait", float(waits.max()) * 1e3, "ms"),
            Figure("step", float(np.median(steps)) * 1e3, "ms"),
        ],
        busy=float(np.mean(busy)),
        details={"shares": shares},
    )


ROWS = [
    Row(
        "data-wait",
        "share of the steps' time that the loop waits for its batch, rows memory-mapped, in blocks of steps",
        0.01,
        "",
        measure,
        at_least=False,
    )
]
