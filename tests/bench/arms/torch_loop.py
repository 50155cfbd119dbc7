"""The bare loop: torch and the model, nothing else. As fast as forty plain lines can be made (fused AdamW)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from tests.bench.gate import Gate
from tests.bench.workload import BETAS, EPS, Workload, decay_groups


def run(workload: Workload, gate: Gate, folder: Path) -> dict[str, float]:
    model, rows = workload.model(), workload.stacked()
    optimizer = torch.optim.AdamW(decay_groups(model), lr=workload.learning_rate, betas=BETAS, eps=EPS, fused=True)
    for step in range(workload.total_steps):
        batch = rows[workload.order(step)]
        logits = model(input_ids=batch).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), workload.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        gate(loss.item())
    return {}
