"""The ranks of an arm. Its child process is rank 0, which alone has a gate; it starts the others as children of its own.

Where rank 0 stands at the gate the others wait for it in their next collective, without using the processor.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from infra.launch.network import free_port
from tests.bench.workload import Workload, cores


def rank() -> int:
    """Which rank this process is."""
    return int(os.environ.get("RANK", "0"))


def train(name: str, workload: Workload, gate: Callable[[float], None], folder: Path) -> dict[str, float]:
    """This rank's part of the arm, on its share of the cores."""
    import torch

    torch.set_num_threads(max(1, cores() // workload.ranks))
    figures: dict[str, float] = importlib.import_module(f"tests.bench.arms.{name}").run(workload, gate, folder)
    return figures


@contextlib.contextmanager
def followers(name: str, workload: Workload, folder: Path) -> Iterator[None]:
    """Ranks 1 and up, training beside this process, which becomes rank 0."""
    os.environ.update(
        {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "WORLD_SIZE": str(workload.ranks),
            "RANK": "0",
            "LOCAL_RANK": "0",
        }
    )
    spawn = multiprocessing.get_context("spawn")
    others = [spawn.Process(target=_follow, args=(n, name, workload, folder)) for n in range(1, workload.ranks)]
    for process in others:
        process.start()
    try:
        yield
    finally:
        for process in others:
            process.kill()


def _follow(number: int, name: str, workload: Workload, folder: Path) -> None:
    os.environ.update({"RANK": str(number), "LOCAL_RANK": str(number)})
    train(name, workload, lambda loss: None, folder)


def join(workload: Workload) -> None:
    """Open the process group over gloo; a single rank needs no port."""
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore

    if workload.ranks == 1:
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    else:
        dist.init_process_group("gloo")


def mean(value: float, workload: Workload) -> float:
    """`value` averaged over the ranks: what a step's loss is where each rank sees as many tokens."""
    import torch
    import torch.distributed as dist

    if workload.ranks == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return float(total) / workload.ranks
