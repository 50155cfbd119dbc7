"""The processes of one training run: which of them this is, its device, and the few values they exchange."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from infra.errors import StageError
from infra.execution import Execution


def training_device(execution: Execution) -> torch.device:
    """The device of this process: its own GPU by LOCAL_RANK, or the CPU. Raises StageError for a GPU not there."""
    cuda = torch.cuda.is_available()
    if execution.device == "cuda" and not cuda:
        raise StageError("no CUDA device is visible", where="execution.device", hint="Use `auto` or `cpu`.")
    if execution.device == "cpu" or not cuda:
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise StageError(
            f"rank {local} of this machine has no GPU: {torch.cuda.device_count()} are visible",
            where="execution.processes",
            hint="Use at most one process a GPU.",
        )
    return torch.device("cuda", local)


@dataclass(frozen=True)
class Ranks:
    """This process among `world_size`. Methods are collectives: all ranks call them, in the same order."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def join(self) -> None:
        """Open the process group: nccl on CUDA, gloo on CPU; MASTER_ADDR and MASTER_PORT say where the ranks meet.

        A single process meets nobody: its group's store is in memory and needs no port.
        """
        if dist.is_initialized():
            if dist.get_world_size() != self.world_size:
                raise StageError(f"this process is in a group of {dist.get_world_size()}, not {self.world_size}")
            return
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        if self.world_size == 1:
            os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        else:
            dist.init_process_group(backend, rank=self.rank, world_size=self.world_size)

    def sum(self, *values: float) -> list[float]:
        """Each value summed over the ranks, in fp64."""
        if self.world_size == 1:
            return [float(value) for value in values]
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def add_up(self, values: torch.Tensor) -> torch.Tensor:
        """A tensor on the device, summed over the ranks in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any] | None:
        """Every rank's value on rank 0, None elsewhere."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] | None = [None] * self.world_size if self.leads else None
        dist.gather_object(value, gathered)
        return gathered

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value on every rank; what the others pass is ignored."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()
