"""What a step loses while a checkpoint is being stored beside it."""

from __future__ import annotations

import contextlib
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from tests.bench.arm import Arm
from tests.bench.pairs import of_median
from tests.bench.result import Figure, Measurement, Row, Settings
from tests.bench.workload import Workload

MOST_STEPS_A_CHECKPOINT = 120


def measure(s3: bool, settings: Settings) -> Measurement:
    steps = MOST_STEPS_A_CHECKPOINT
    workload = Workload(batch=4, steps=steps, blocks=settings.pairs)
    with contextlib.ExitStack() as stack:
        environment = {}
        if s3:
            from tests.e2e.seaweed import SeaweedFS

            server = SeaweedFS(settings.folder / "s3")
            stack.callback(server.stop)
            server.wait_until_ready()
            # A store works on a machine of its own; here it may only have what is left. Linux has it by thread, and
            # shares the cores out between sessions before it looks at that.
            for thread in psutil.Process(server.process.pid).threads():
                os.setpriority(os.PRIO_PROCESS, thread.id, 19)
            group = Path(f"/proc/{server.process.pid}/autogroup")
            if group.exists():
                group.write_text("19")
            environment = {**server.env, "FORGELINE_BENCH_STORE": server.url("bench")}
        arm = stack.enter_context(Arm("upload_slowdown", workload, settings.folder / "arm", environment=environment))
        arm.finish()
        found = json.loads((arm.folder / "found.json").read_text(encoding="utf-8"))
    cycles = found["cycles"]
    ratios = [float(np.mean(beside) / np.mean(quiet)) for beside, quiet in cycles]
    beside, quiet = ([value for cycle in cycles for value in cycle[side]] for side in (0, 1))
    return of_median(
        ratios,
        figures=[
            Figure("step beside an upload", float(np.median(beside)) * 1e3, "ms"),
            Figure("quiet step", float(np.median(quiet)) * 1e3, "ms"),
            Figure("a checkpoint beside", len(beside) / len(cycles), "steps"),
            Figure("met an upload", found["storing_share"] * 100, "% of the steps"),
        ],
        details={
            "ratios": ratios,
            "beside_seconds": beside,
            "quiet_seconds": quiet,
        },
    )


WHAT = (
    "mean time of the steps that ran wholly beside a checkpoint being stored (123 MB, the snapshot's stall taken off) over "
    "that of the quiet steps around it, median over the checkpoints; "
)

ROWS = [
    Row("upload-slowdown", WHAT + "folder store", 1.20, "", partial(measure, False), at_least=False),
    Row(
        "upload-slowdown-s3",
        WHAT + "SeaweedFS on the same two cores, at the lowest priority in place of another machine",
        1.20,
        "",
        partial(measure, True),
        at_least=False,
    ),
]
