"""The rank of the goodput benchmark under Forgeline's launcher: resume and train to the last step of `run.json`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path


def main(folder: Path) -> int:
    """The entry of the job. Its store lies in the same folder, so each life finds what the one before left."""
    from tasks.objective import objective
    from tasks.training.loop.train import train
    from tests.bench.arms.forgeline_train import training_params
    from tests.bench.storing import WatchedCheckpoints, watch
    from tests.bench.workload import Workload
    from tests.stages.jobs import make_job

    plan = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    workload = Workload(**plan["workload"])
    params = training_params(workload).model_copy(update={"max_steps": plan["steps"]})
    watch(WatchedCheckpoints)
    # A life of its own each time, as on another machine: only the store is shared.
    place = folder / f"life-{os.getpid()}-{time.monotonic_ns()}"
    with (folder / "steps.jsonl").open("a", encoding="utf-8") as marks:

        def progress(step: int, total: int, **values: float) -> None:
            checkpoints = WatchedCheckpoints.made
            mark = {
                "step": step,
                "loss": values["loss"],
                "when": checkpoints.step_ended(),
                "snapshots": checkpoints.snapshots,
                "pid": os.getpid(),
                "at": time.monotonic(),
            }
            marks.write(json.dumps(mark) + "\n")
            marks.flush()

        job = make_job(
            place,
            params,
            execution={"device": "cpu", "checkpoint": {"every": plan["every"]}},
            progress=progress,
            store=folder / "store",
        )
        train(job, workload.model(), objective("causal_lm"), workload.features(), [], params)
    return 0
