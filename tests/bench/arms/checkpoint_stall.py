"""Not a training run: how long a snapshot holds a training up, beside a memory copy and a synchronous save of that state.

A real engine makes a real step before every timing, so that each begins with the caches a step leaves. The three take
turns, and nothing is being stored while another is on the clock. Leaves `found.json` in its folder: lists of seconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from infra.checkpoints import CheckpointStore
from infra.open_store import open_store
from tasks.training.checkpoints.checkpoint import Checkpoints, TrainingState
from tasks.training.engine.batch import split_batch
from tasks.training.engine.engine import Engine
from tasks.training.engine.ranks import Ranks
from tests.bench.arms.forgeline_train import training_params
from tests.bench.gate import Gate
from tests.bench.workload import Workload
from tests.stages.jobs import make_job

KEEP = 2
SHARD = "rank-00000-of-00001.safetensors"


def run(workload: Workload, gate: Gate, folder: Path) -> dict[str, float]:
    three = _Three(workload, folder)
    ways = [three.copy, three.snapshot, three.save]
    found: dict[str, list[float]] = {f"{way.__name__}_seconds": [] for way in ways}
    found["first_seconds"] = [three.after_a_step(three.snapshot)]
    for way in ways:
        three.after_a_step(way)
    for number in range(workload.blocks):
        for way in ways[number % 3 :] + ways[: number % 3]:
            found[f"{way.__name__}_seconds"].append(three.after_a_step(way))
    found |= {"serialise_seconds": three.serialise_seconds[-workload.blocks :], "bytes": [three.size()]}
    three.check()
    three.checkpoints.close()
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
    return {}


class _Three:
    """One training and three ways to keep its state; each returns the seconds it took."""

    def __init__(self, workload: Workload, folder: Path) -> None:
        params = training_params(workload)
        execution = {"zero_stage": 0, "device": "cpu", "checkpoint": {"keep": KEEP}}
        job = make_job(folder / "job", params, execution=execution, store=folder / "store")
        ranks = Ranks(0, 1, torch.device("cpu"))
        split = split_batch(workload.batch, 1, "auto", where="batch")
        self.workload, self.rows, self.folder = workload, workload.stacked(), folder
        self.engine = Engine(
            workload.model(), params.optimizer, split, job.execution, ranks, max_grad_norm=workload.max_grad_norm
        )
        self.checkpoints = Checkpoints(job, ranks, self.engine, anchor_every=1_000_000)
        # The same folder store, under another key.
        self.synchronous = CheckpointStore(open_store(str(folder / "store")), "kind", "1" * 64)
        self.state = TrainingState(1_000_000)
        self.copies: dict[str, torch.Tensor] = {}
        self.serialise_seconds: list[float] = []

    def after_a_step(self, way: Callable[[], float]) -> float:
        self.step()
        return way()

    def step(self) -> None:
        batch = self.rows[self.workload.order(self.state.step)]
        logits = self.engine.logits({"input_ids": batch})
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
        self.engine.backward(loss, batch[:, 1:].numel(), last=True)
        self.engine.gradient_norm()
        self.engine.step(self.workload.learning_rate)
        self.state.step += 1
        self.state.updates += 1

    def copy(self) -> float:
        tensors = self._tensors()
        if not self.copies:
            self.copies = {name: torch.zeros_like(tensor).fill_(1) for name, tensor in tensors.items()}
        began = time.perf_counter()
        for name, place in self.copies.items():
            place.copy_(tensors[name])
        return time.perf_counter() - began

    def snapshot(self) -> float:
        began = time.perf_counter()
        self.checkpoints.save(self.state, {})
        stalled = time.perf_counter() - began
        failure = self.checkpoints.wait()
        if failure is not None:
            raise failure
        return stalled

    def save(self) -> float:
        path = self.folder / SHARD
        began = time.perf_counter()
        save_file(self._tensors(), path)
        self.serialise_seconds.append(time.perf_counter() - began)
        self.synchronous.commit(self.state.step, {SHARD: path}, self.state.to_json())
        self.synchronous.prune(KEEP)
        seconds = time.perf_counter() - began
        path.unlink()
        return seconds

    def size(self) -> float:
        return float(sum(tensor.nbytes for tensor in self._tensors().values()))

    def check(self) -> None:
        """Speed counts only where the same bytes were kept."""
        self.step()
        for way in (self.copy, self.snapshot, self.save):
            way()
        stores = (self.checkpoints.store, self.synchronous)
        ours, theirs = (load_file(store.load(self.state.step).path / SHARD) for store in stores)
        for name, tensor in self._tensors().items():
            for kept in (self.copies[name], ours[name], theirs[name]):
                if not torch.equal(kept, tensor):
                    raise AssertionError(f"{name} was not kept as it is")

    def _tensors(self) -> dict[str, torch.Tensor]:
        pieces = self.engine.parameters.pieces()
        return {f"{part}/{piece.name}": values for piece in pieces for part, values in piece.parts.items()}
