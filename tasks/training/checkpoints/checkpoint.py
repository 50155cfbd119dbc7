"""Checkpoints of a training run: every rank copies its pieces to host memory, a process beside it stores them.

    checkpoints = Checkpoints(job, ranks, engine, anchor_every=500)
    checkpoints.save(step, state, growing)      # returns after the copy
    checkpoints.poll()                          # each step: notes what became of it
    checkpoints.wait()                          # until it is stored

A checkpoint is, through the job's `CheckpointStore`:

    rank-00000-of-00002.safetensors ...   weights, Adam moments and buffers in fp32 (`tasks/training/engine/shards.py`)
    config.json                           the model's Hugging Face config
    journals/*.jsonl                      the training's record so far
    state                                 step, counters, layout: plain numbers (`TrainingState`)

Nothing else is needed to go on: data order and dropout are functions of (seed, place in the stream), the learning rate
of the step; W&B is fed from the journals. While one is being stored no other is taken (back-pressure); when the store
fails, training goes on for `checkpoint.patience` seconds, and the caller asks `overdue` when to stop and wait.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.checkpoint_process import CheckpointProcess
from infra.errors import ForgelineError, LeaseLost, StageError
from tasks.training.checkpoints.cadence import Cadence
from tasks.training.engine.shards import ShardReader, SnapshotBuffer, shard_name

if TYPE_CHECKING:
    import torch

    from infra.checkpoints import Checkpoint
    from tasks.stage import Job
    from tasks.training.engine.engine import Engine
    from tasks.training.engine.ranks import Ranks

log = logging.getLogger(__name__)
FORMAT = 4
READABLE = (3, FORMAT)
"""3 counted `tokens` where 4 counts `work`."""


@dataclass
class TrainingState:
    """Where a training run stands, apart from its tensors. `step`: optimizer steps done, skipped updates included."""

    total_steps: int
    step: int = 0
    work: float = 0.0
    """How much of the objective's `work_unit` all steps held."""
    updates: int = 0
    """Steps whose update was made; Adam's bias correction counts these."""
    skipped: int = 0
    skipped_in_row: int = 0
    rollbacks: int = 0
    offset: int = 0
    """Steps of the data stream left out by going back: step n trains on the stream's step n + offset."""
    rate_factor: float = 1.0
    micro: int = 0
    """Examples a rank holds at once, if memory was too small for more. 0: as configured."""
    trained_seconds: float = 0.0
    interruptions: int = 0
    judged: int = 0
    """The step after which the last evaluation was, and what it found."""
    values: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    best_values: dict[str, float] = field(default_factory=dict)
    worse_in_row: int = 0
    """Evaluations since the best one."""

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TrainingState:
        """Raises StageError if another version of Forgeline wrote it."""
        if data.get("format") not in READABLE:
            raise StageError(
                f"checkpoint format {data.get('format')!r} is not {FORMAT}",
                hint="It was written by another version of Forgeline; finish with that one, or remove the checkpoint.",
            )
        known = {**data, "work": data.get("work", data.get("tokens"))}
        return TrainingState(**{field.name: known[field.name] for field in fields(TrainingState)})


class Checkpoints:
    """One rank's side of saving and loading. `save`, `load` and `wait` are called by all ranks alike."""

    def __init__(self, job: Job[Any], ranks: Ranks, engine: Engine, *, anchor_every: int) -> None:
        self.store, self.settings = job.checkpoints, job.execution.checkpoint
        self.ranks, self.engine, self.scratch, self.anchor_every = ranks, engine, job.scratch, anchor_every
        self.cadence = Cadence()
        self.failure: ForgelineError | None = None
        self._versions = {name: version(name) for name in ("torch", "transformers", "deepspeed")}
        self._attempt = str(ranks.broadcast(uuid.uuid4().hex[:12]))
        self._buffer: SnapshotBuffer | None = None
        self._process: CheckpointProcess | None = None
        self._last_step = 0
        self._last_time = self._stored_time = time.monotonic()

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being stored; the buffer may not be touched."""
        return self._process is not None and self._process.busy

    def due(self, step: int) -> bool:
        """Whether the state after `step` steps should be saved. Rank 0's clock decides for `auto`."""
        if step <= self._last_step:
            return False
        if self.settings.every == "auto":
            cadence = time.monotonic() - self._last_time >= self.cadence.seconds
        else:
            cadence = step % self.settings.every == 0
        return cadence or step % (self.settings.permanent_every or step + 1) == 0

    def overdue(self) -> bool:
        """Whether saving has been failing for longer than training may go on."""
        return self.failure is not None and time.monotonic() - self._stored_time > self.settings.patience

    def save(self, state: TrainingState, growing: Mapping[str, Path]) -> float:
        """Copy this rank's state into memory and have it stored; `growing`: files still appended to, by name.

        Returns the seconds the caller stood still.
        """
        began = time.perf_counter()
        tensors, starts = self._tensors()
        if self._buffer is None:
            self._buffer = SnapshotBuffer(tensors, starts, self.scratch)
            inherit = self._buffer.fd
            size = self.ranks.world_size
            self._process = CheckpointProcess(
                self.store, rank=self.ranks.rank, ranks=size, inherit=inherit, patience=self.settings.patience
            )
        assert self._process is not None
        self._buffer.fill(tensors)
        name = shard_name(self.ranks.rank, self.ranks.world_size)
        request: dict[str, Any] = {
            "step": state.step,
            "attempt": f"{self._attempt}-{state.rollbacks}",
            "files": {name: str(self._buffer.path)},
            "growing": {},
            "state": {},
            "prune": {},
        }
        if self.ranks.leads:
            config = self.scratch / "config.json"
            if not config.exists():  # the same at every save, and the step waits
                config.write_text(self.engine.module.config.to_json_string(use_diff=False), encoding="utf-8")
            request["files"]["config.json"] = str(config.absolute())
            request["growing"] = {n: [str(path.absolute()), path.stat().st_size] for n, path in growing.items()}
            request["state"] = {
                **state.to_json(),
                "ranks": self.ranks.world_size,
                "zero_stage": self.engine.zero_stage,
                "scaler": self.engine.scaler_state(),
                "versions": self._versions,
                "shapes": self.engine.parameters.shapes(),
            }
            request["prune"] = {
                "keep": self.settings.keep,
                "permanent_every": self.settings.permanent_every or 0,
                "anchor_every": self.anchor_every,
            }
        self._process.save(request)
        self._last_step, self._last_time = state.step, time.monotonic()
        stalled = time.perf_counter() - began
        self.cadence.stall(stalled)
        return stalled

    def poll(self, timeout: float = 0.0) -> None:
        """Note how a save ended, if one did. Raises LeaseLost: what this run makes is no longer wanted."""
        outcome = self._process.poll(timeout) if self._process else None
        if outcome is None:
            return
        if isinstance(outcome.error, LeaseLost):
            raise outcome.error
        self.failure = outcome.error
        if outcome.error is None:
            self._stored_time = time.monotonic()
            self.cadence.saved()
        else:
            log.warning("the checkpoint at step %d was not stored, training goes on: %s", outcome.step, outcome.error)

    def wait(self) -> ForgelineError | None:
        """Until nothing is being stored; what went wrong with the last save of this rank, or None."""
        while self.busy:
            self.poll(timeout=1.0)
        return self.failure

    def require_stored(self) -> None:
        """Wait for the checkpoint under way on all ranks. Raises, on each of them, what kept one from being stored."""
        failures = self.ranks.gather(self.wait())
        failure = self.ranks.broadcast(next((f for f in failures or [] if f is not None), None))
        if failure is not None:
            raise failure

    def wait_for_store(self, save: Callable[[], None], *, where: str) -> None:
        """Stand still until a checkpoint is stored: more work may not be put at risk. Raises StageError at last."""
        log.warning("checkpoints have failed for long; training waits for the store")
        deadline = time.monotonic() + self.settings.patience
        while True:
            self.wait()
            save()
            try:
                self.require_stored()
                return
            except ForgelineError as error:
                if self.ranks.broadcast(time.monotonic() > deadline):
                    raise StageError(
                        f"checkpoints cannot be stored; training stopped after step {self._last_step}: {error.what}",
                        where=where,
                        hint=f"{error.hint or ''} Then run again: it resumes from the last checkpoint.".strip(),
                    ) from error
            time.sleep(1.0)

    def load(self, step: int | None = None) -> tuple[Checkpoint, TrainingState] | None:
        """Set the engine to the newest checkpoint that verifies, or to that at `step`; None if there is none."""
        newest = None
        if step is None:
            newest = self.store.latest() if self.ranks.leads else None
            step = self.ranks.broadcast(newest.step if newest else None)
            if step is None:
                return None
        try:
            found = newest or self.store.load(step)
        except FileNotFoundError as error:
            hint = "The store failed when it was due, or someone removed it."
            raise StageError(f"there is no checkpoint at step {step} to go back to", hint=hint) from error
        state = TrainingState.from_json(found.state)
        self.engine.load(ShardReader(found.path), state.updates, found.state["scaler"])
        other = {name: v for name, v in found.state["versions"].items() if v != self._versions[name]}
        if other and self.ranks.leads:
            log.warning("the checkpoint was made with %s; results may differ from then on", other)
        self._last_step, self._last_time = state.step, time.monotonic()
        return found, state

    def go_back(self, step: int) -> None:
        """Forget every checkpoint after `step`; training goes on from there along another way."""
        if self.ranks.leads:
            self.store.delete_after(step)
        self.ranks.barrier()
        self._last_step = step

    def close(self) -> None:
        """Give up what is being stored and the memory."""
        if self._process is not None:
            self._process.close()
        if self._buffer is not None:
            self._buffer.close()
            self._buffer = None

    def _tensors(self) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
        pieces = self.engine.parameters.pieces()
        tensors = {f"{part}/{piece.name}": values for piece in pieces for part, values in piece.parts.items()}
        if self.ranks.leads:
            tensors |= self.engine.parameters.buffers.tensors()
        return tensors, {piece.name: piece.start for piece in pieces}
