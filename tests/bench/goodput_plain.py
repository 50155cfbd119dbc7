"""The other arm of the goodput benchmark: a bare torch loop that stops for `torch.save` and resumes from the file.

python -m tests.bench.goodput_plain FOLDER        (FOLDER holds run.json)
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from tests.bench.workload import BETAS, EPS, Workload, cores, decay_groups


def main(folder: Path) -> None:
    plan = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    workload = Workload(**plan["workload"])
    torch.set_num_threads(cores())
    model, rows = workload.model(), workload.stacked()
    optimizer = torch.optim.AdamW(decay_groups(model), lr=workload.learning_rate, betas=BETAS, eps=EPS, fused=True)
    kept, done, snapshots = folder / "state.pt", 0, 0
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    with (folder / "steps.jsonl").open("a", encoding="utf-8") as marks:
        for step in range(done, plan["steps"]):
            saves = step % plan["every"] == 0 and step > done
            if saves:  # before the step, where Forgeline takes its snapshot
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                torch.save(state, folder / "state.tmp")
                (folder / "state.tmp").replace(kept)
                snapshots += 1
            batch = rows[workload.order(step)]
            logits = model(input_ids=batch).logits
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), workload.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            mark = {
                "step": step + 1,
                "loss": loss.item(),
                "when": "mixed" if saves else "quiet",
                "snapshots": snapshots,
                "pid": os.getpid(),
                "at": time.monotonic(),
            }
            marks.write(json.dumps(mark) + "\n")
            marks.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
