"""What it costs to start in the middle: a fresh sampler gives the batch of step one million."""

from __future__ import annotations

import time

import numpy as np

from tests.bench.result import Figure, Measurement, Row, Settings

EXAMPLES = 10_000_000
BATCH = 512
FAR = 1_000_000
REPEATS = 15


def measure(settings: Settings) -> Measurement:
    from tasks.training.engine.batch import BatchSplit
    from tasks.training.loop.sampler import Sampler

    seconds: dict[int, list[float]] = {0: [], FAR: []}
    for seed in range(REPEATS):
        for step, found in seconds.items():
            began = time.perf_counter()
            batch = Sampler(EXAMPLES, seed, BatchSplit(BATCH, 1, BATCH)).global_batch(step)
            found.append(time.perf_counter() - began)
            if len(set(batch)) != BATCH:
                raise AssertionError(f"step {step} repeats an example")
    return Measurement(
        value=float(np.median(seconds[FAR])),
        low=min(seconds[FAR]),
        high=max(seconds[FAR]),
        interval="min-max",
        figures=[
            Figure("step 0", float(np.median(seconds[0])) * 1e3, "ms"),
            Figure("step 1,000,000", float(np.median(seconds[FAR])) * 1e3, "ms"),
        ],
    )


ROWS = [
    Row(
        "seek",
        f"a fresh sampler over {EXAMPLES:,} examples gives the {BATCH} examples of step {FAR:,}",
        1.0,
        "s",
        measure,
        at_least=False,
    )
]
