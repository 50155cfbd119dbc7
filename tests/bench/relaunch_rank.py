"""What each rank of the relaunch benchmark does, under whichever launcher: resume, train, and tell when a step is done.

    torchrun --nproc-per-node 2 tests/bench/relaunch_rank.py FOLDER        (or `main(folder)` as the entry of a job)

FOLDER holds `run.json` (checkpoint cadence) and `store`. A rank leaves its process id in `rank-<i>.pid` when it starts;
rank 0 writes a line to `steps.jsonl` after every optimizer step: step, loss, process id, and the machine's monotonic
clock. The training goes on until it is killed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

STEPS = 1_000_000
ROWS, CONTEXT, VOCABULARY, BATCH = 256, 32, 512, 8


def main(folder: Path) -> int:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    (folder / f"rank-{rank}.pid").write_text(str(os.getpid()), encoding="utf-8")

    import numpy as np
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tasks.objective import objective
    from tasks.training.loop.train import train
    from tasks.training.settings import TrainingParams
    from tests.stages.jobs import make_job

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "llama",
            vocab_size=VOCABULARY,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=128,
            max_position_embeddings=CONTEXT,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    drawn = np.random.default_rng(0).integers(3, VOCABULARY, (ROWS, CONTEXT))
    params = TrainingParams.model_validate({"max_steps": STEPS, "global_batch_size": BATCH, "learning_rate": 1e-3})
    with (folder / "steps.jsonl").open("a", encoding="utf-8") as marks:

        def progress(step: int, total: int, **values: float) -> None:
            mark = {"step": step, "loss": values["loss"], "pid": os.getpid(), "at": time.monotonic()}
            marks.write(json.dumps(mark) + "\n")
            marks.flush()

        job = make_job(
            folder / f"rank-{rank}",
            params,
            execution={"device": "cpu", "checkpoint": json.loads((folder / "run.json").read_text(encoding="utf-8"))},
            progress=progress,
            rank=rank,
            world_size=world_size,
            store=folder / "store",
        )
        train(job, model, objective("causal_lm"), [{"input_ids": row} for row in drawn], [], params)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
