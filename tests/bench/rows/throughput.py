"""Tokens a second against the bare torch loop, bare DeepSpeed at each ZeRO stage, and HF Trainer with DeepSpeed."""

from __future__ import annotations

from functools import partial

from tests.bench.pairs import throughput
from tests.bench.result import Row

AGAINST = "tokens/s of Forgeline over"
ALONE = "; a single rank that offloads nothing trains at ZeRO 0 in Forgeline, whatever its setting"


def against(name: str, what: str, bar: float, opponent: str, stage: int, ranks: int = 1) -> Row:
    return Row(f"throughput-{name}", f"{AGAINST} {what}", bar, "", partial(throughput, opponent, stage, ranks))


ROWS = [
    against(
        "torch",
        "a bare torch loop in one process, hidden 384 x 4 layers, 16 x 128 tokens a step",
        0.97,
        "torch_loop",
        0,
    ),
    *(
        against(
            f"deepspeed-{stage}",
            f"a bare `deepspeed.initialize` loop, both set to ZeRO {stage}, same workload in one process{ALONE}",
            0.98,
            "deepspeed_loop",
            stage,
        )
        for stage in range(4)
    ),
    *(
        against(
            f"two-ranks-{stage}",
            f"a bare `deepspeed.initialize` loop, both at ZeRO {stage} on two ranks of half the threads",
            0.98,
            "deepspeed_loop",
            stage,
            2,
        )
        for stage in range(4)
    ),
    *(
        against(
            f"trainer-{stage}",
            f"HF Trainer with a DeepSpeed config, both set to ZeRO {stage}, logging every step, not saving",
            1.10,
            "hf_trainer",
            stage,
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
