"""Tokens a second against the bare torch loop, bare DeepSpeed at each ZeRO stage, and HF Trainer with DeepSpeed."""

from __future__ import annotations

from functools import partial

from tests.bench.pairs import throughput
from tests.bench.result import Row

AGAINST = "tokens/s of Forgeline over"
ALONE = "; a single rank that offloads nothing trains at ZeRO 0 in Forgeline, whatever it is told"

ROWS = [
    Row(
        "throughput-torch",
        f"{AGAINST} a bare torch loop in one process, hidden 384 x 4 layers, 16 x 128 tokens a step",
        0.97,
        "",
        partial(throughput, "torch_loop", 0, 1),
    ),
    *(
        Row(
            f"throughput-deepspeed-{stage}",
            f"{AGAINST} a bare `deepspeed.initialize` loop, both told ZeRO {stage}, same workload in one process{ALONE}",
            0.98,
            "",
            partial(throughput, "deepspeed_loop", stage, 1),
        )
        for stage in range(4)
    ),
    *(
        Row(
            f"throughput-two-ranks-{stage}",
            f"{AGAINST} a bare `deepspeed.initialize` loop, both at ZeRO {stage} on two ranks of half the threads",
            0.98,
            "",
            partial(throughput, "deepspeed_loop", stage, 2),
        )
        for stage in range(4)
    ),
    *(
        Row(
            f"throughput-trainer-{stage}",
            f"{AGAINST} HF Trainer with a DeepSpeed config, both told ZeRO {stage}, logging every step, not saving",
            1.10,
            "",
            partial(throughput, "hf_trainer", stage, 1),
        )
        for stage in (0, 2)
    ),
    Row(
        "throughput-torch-trainer",
        "the same over HF Trainer at ZeRO 0, but of the bare torch loop: how far below its own step any loop around this "
        "model can get; nobody's bar, for comparison only",
        1.10,
        "",
        partial(throughput, "hf_trainer", 0, 1, first="torch_loop"),
    ),
]
