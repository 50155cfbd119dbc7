"""The bare DeepSpeed loop: `deepspeed.initialize` with the config of its own documentation, at one ZeRO stage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from tests.bench.gate import Gate
from tests.bench.ranks import join, mean, rank
from tests.bench.workload import BETAS, EPS, Workload, decay_groups


def run(workload: Workload, gate: Gate, folder: Path) -> dict[str, float]:
    deepspeed = import_deepspeed()
    join(workload)
    model, rows = workload.model(), workload.stacked()
    optimizer = torch.optim.AdamW(decay_groups(model), lr=workload.learning_rate, betas=BETAS, eps=EPS, fused=True)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=config(workload), dist_init_required=False
    )
    engine.train()
    for step in range(workload.total_steps):
        batch = rows[workload.share(step, rank())]
        logits = engine(input_ids=batch).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        engine.backward(loss)
        engine.step()
        gate(mean(loss.item(), workload))
    return {}


def config(workload: Workload) -> dict[str, Any]:
    return {
        "train_batch_size": workload.batch,
        "train_micro_batch_size_per_gpu": workload.batch // workload.ranks,
        "gradient_clipping": workload.max_grad_norm,
        "zero_optimization": {"stage": workload.zero_stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }


def import_deepspeed() -> Any:
    """DeepSpeed on the CPU without its build of shared-memory collectives, which takes minutes."""
    os.environ.update({"DS_ACCELERATOR": "cpu", "DEEPSPEED_LOG_LEVEL": "warning"})
    os.environ.setdefault("LOCAL_RANK", "0")
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
