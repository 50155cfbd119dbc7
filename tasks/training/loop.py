"""The one training loop: pretrain, finetune, distil and heal are this function with another model, data and loss.

A step is: collate this rank's micro-batches; agree with the other ranks on the number of loss units, on a stop
request and on a checkpoint (one small all-reduce); forward and backward per micro-batch; check that the loss is
finite; update. Everything a step depends on is a function of (params, step, weights), so a resumed training makes the
steps an undisturbed one would have made: bit for bit on the same number of ranks in fp32 on a CPU.
"""

from __future__ import annotations

import hashlib
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from infra.errors import Preempted, StageError
from tasks.objectives import Feature, Objective
from tasks.stage import Job
from tasks.training.batch import BatchSplit, split_batch
from tasks.training.checkpoint import CheckpointWriter, Snapshot, load_latest
from tasks.training.engine import Engine, model_inputs
from tasks.training.evaluate import validate
from tasks.training.journal import Journal
from tasks.training.ranks import Ranks, training_device
from tasks.training.sampler import Sampler, steps_for_epochs
from tasks.training.schedule import learning_rate_factor
from tasks.training.settings import TrainingParams
from tasks.training.throughput import ModelFlops, matrix_flops, memory_mb

LossFn = Callable[[torch.Tensor, Mapping[str, torch.Tensor]], torch.Tensor]
"""(logits, batch) -> summed loss over the units the objective counts in the batch."""


@dataclass
class TrainResult:
    """What a training left. `model` is plain, in fp32, on the CPU and in eval mode, complete on rank 0 only."""

    model: PreTrainedModel
    steps: int
    tokens: int
    tokens_per_second: float
    mfu: float
    """Medians over the steps; see `tasks/training/throughput.py`."""
    seen: list[int]
    """Indices of the train features met at least once, sorted."""
    validation: dict[str, float] = field(default_factory=dict)
    """Mean loss and the objective's metrics on the validation split after the last step, on rank 0."""

    @classmethod
    def untrained(
        cls, model: PreTrainedModel, objective: Objective, validation_features: Sequence[Feature]
    ) -> TrainResult:
        """A model as it is, on the CPU, measured like a trained one."""
        model.train(False)
        values = validate(
            lambda batch: model(**model_inputs(batch)).logits,
            objective,
            validation_features,
            pad_token_id(model),
            Ranks(),
        )
        return cls(model, steps=0, tokens=0, tokens_per_second=0.0, mfu=0.0, seen=[], validation=values)

    def metrics(self) -> dict[str, float]:
        """The summary a stage returns; numbers only."""
        return {
            "steps": float(self.steps),
            "tokens": float(self.tokens),
            "tokens_per_second": self.tokens_per_second,
            "mfu": self.mfu,
            **{f"validation_{name}": value for name, value in self.validation.items()},
        }


def train(
    job: Job[Any],
    model: PreTrainedModel,
    objective: Objective,
    train_features: Sequence[Feature],
    validation_features: Sequence[Feature],
    params: TrainingParams,
    *,
    loss_fn: LossFn | None = None,
) -> TrainResult:
    """Train `model` in place, resuming from the job's newest checkpoint; every rank calls it alike.

    loss_fn: what to minimise instead of the objective's own loss (distillation); validation always uses the latter.
    Raises Preempted after committing the state if the job was asked to stop, StageError if the loss is not finite or
    the global batch does not divide.
    """
    split = split_batch(
        params.global_batch_size,
        job.world_size,
        job.execution.per_device_train_batch_size,
        where=f"stages.{job.name}.global_batch_size",
    )
    total = params.max_steps or steps_for_epochs(len(train_features), params.epochs or 1, split.global_batch)
    run = _Training(job, model, objective, train_features, validation_features, params, loss_fn, split, total)
    return run.run()


class _Training:
    """State of one training on one rank."""

    def __init__(
        self,
        job: Job[Any],
        model: PreTrainedModel,
        objective: Objective,
        train_features: Sequence[Feature],
        validation_features: Sequence[Feature],
        params: TrainingParams,
        loss_fn: LossFn | None,
        split: BatchSplit,
        total: int,
    ) -> None:
        self.job, self.objective, self.params, self.total = job, objective, params, total
        self.train_features, self.validation_features = train_features, validation_features
        self.loss_fn: LossFn = loss_fn or (lambda logits, batch: objective.loss(logits, batch)[0])
        self.model = model
        self.pad = pad_token_id(model)
        self.sampler = Sampler(len(train_features), params.seed, split)
        self.use_cache = getattr(model.config, "use_cache", None)
        if self.use_cache is not None:
            model.config.use_cache = False  # a training step never reads the attention cache it would fill
        self.ranks = Ranks(job.rank, job.world_size, training_device(job.execution))
        self.flops = ModelFlops.of(model)
        self.engine = Engine(
            model,
            params.optimizer,
            split,
            job.execution,
            self.ranks,
            max_grad_norm=params.max_grad_norm,
        )
        dtype = torch.bfloat16 if job.execution.precision == "bf16" else torch.float32
        self.machine_flops = self.ranks.sum(matrix_flops(self.ranks.device, dtype))[0]
        self.leads = self.ranks.leads
        self.steps = Journal(job.records / "train.jsonl")
        self.evaluations = Journal(job.records / "validation.jsonl")
        checkpoint = job.execution.checkpoint
        self.writer = CheckpointWriter(job.checkpoints, job.scratch, checkpoint.every, checkpoint.keep)
        self.tokens = 0
        self.stalled = 0.0

    def run(self) -> TrainResult:
        try:
            first = self._resume()
            for step in range(first, self.total):
                self._step(step, first)
                if self.params.eval_every and (step + 1) % self.params.eval_every == 0 and step + 1 < self.total:
                    self._validate(step + 1)
            validation = self._validate(self.total)
            self.writer.finish()
            return self._result(validation)
        finally:
            self.steps.close()
            self.evaluations.close()
            self.engine.close()

    def _resume(self) -> int:
        snapshot: Snapshot | None = load_latest(self.job.checkpoints) if self.leads else None
        snapshot = self.ranks.broadcast(snapshot)
        if snapshot is None:
            return 0
        if snapshot.total_steps != self.total:
            raise StageError(
                f"the checkpoint belongs to a training of {snapshot.total_steps} steps, not {self.total}",
                where=f"stages.{self.job.name}",
                hint="Its data changed under the same key, which is a bug: report it, and clear the checkpoint.",
            )
        self.engine.load_full_state(snapshot.tensors, snapshot.step)
        self.tokens = snapshot.tokens
        self.steps.restore(snapshot.journals.get("train", []))
        self.evaluations.restore(snapshot.journals.get("validation", []))
        return snapshot.step

    def _step(self, step: int, first: int) -> None:
        began = time.perf_counter()
        micros = [
            (position, self.objective.collate([self.train_features[i] for i in examples], self.pad))
            for position, examples in self.sampler.micro_batches(step, self.job.rank)
        ]
        data_wait = time.perf_counter() - began
        units, tokens, stop, save = self.ranks.sum(
            sum(self.objective.units(batch) for _, batch in micros),
            sum(int(batch["attention_mask"].sum()) for _, batch in micros),
            float(self.job.stop_requested()),
            float(self.leads and self.writer.due(step, first)),
        )
        if stop:
            self._preempt(step)
        if save:
            stall = time.perf_counter()
            self._snapshot(step)
            self.stalled = time.perf_counter() - stall

        rate = self.params.learning_rate * learning_rate_factor(
            self.params.schedule.name,
            step,
            self.total,
            warmup_ratio=self.params.schedule.warmup_ratio,
            min_ratio=self.params.schedule.min_ratio,
        )
        self.engine.engine.train()
        loss_sum, norm = 0.0, None
        for i, (position, batch) in enumerate(micros):
            # Dropout depends on the place in the data stream, so neither ranks nor a resume change it.
            torch.manual_seed(stream_seed(self.params.seed, position))
            batch = {name: value.to(self.ranks.device) for name, value in batch.items()}
            loss = self.loss_fn(self.engine.logits(batch), batch)
            loss_sum += float(loss.detach())
            self.engine.backward(loss, max(units, 1.0))
            last = i == len(micros) - 1
            if last:
                loss_sum = self.ranks.sum(loss_sum)[0]
                norm = self.engine.gradient_norm()
                self._check_finite(step, rate, loss_sum, norm)
            norm_after = self.engine.step(rate)
            norm = norm if norm is not None else norm_after
        self._check_finite(step, rate, loss_sum, norm)
        self.tokens += int(tokens)
        length = max(batch["attention_mask"].shape[1] for _, batch in micros)
        self._record(step, loss_sum / max(units, 1.0), rate, norm, tokens, length, data_wait, began)

    def _check_finite(self, step: int, rate: float, loss: float, norm: float | None) -> None:
        wrong = [
            name
            for name, value in (("loss", loss), ("gradient norm", norm))
            if value is not None and not math.isfinite(value)
        ]
        if wrong:
            raise StageError(
                f"the {wrong[0]} became {loss if wrong[0] == 'loss' else norm} at step {step + 1} of {self.total} "
                f"(learning rate {rate:.3g})",
                where=f"stages.{self.job.name}",
                hint="Lower learning_rate, lengthen schedule.warmup_ratio, or set max_grad_norm.",
            )

    def _record(
        self,
        step: int,
        loss: float,
        rate: float,
        norm: float | None,
        tokens: float,
        length: int,
        data_wait: float,
        began: float,
    ) -> None:
        if not self.leads:
            return
        seconds = time.perf_counter() - began
        entry: dict[str, Any] = {
            "step": step + 1,
            "loss": loss,
            "learning_rate": rate,
            "grad_norm": norm,
            "tokens_per_second": tokens / seconds,
            "mfu": tokens * self.flops.per_token(length) / seconds / self.machine_flops,
            "memory_mb": memory_mb(self.ranks.device),
            "data_wait": data_wait,
            "seconds": seconds,
        }
        if self.stalled:
            entry["checkpoint_stall"], self.stalled = self.stalled, 0.0
        self.steps.append(entry)
        self.job.progress(step + 1, self.total, loss=loss, tokens_per_second=entry["tokens_per_second"])
        self.job.tracker.log(step + 1, {k: v for k, v in entry.items() if k != "step" and v is not None})

    def _validate(self, step: int) -> dict[str, float]:
        began = time.perf_counter()
        self.engine.engine.eval()
        values = validate(self.engine.logits, self.objective, self.validation_features, self.pad, self.ranks)
        if self.leads and values:
            entry = {"step": step, **values, "seconds": time.perf_counter() - began}
            self.evaluations.append(entry)
            self.job.tracker.log(step, {f"validation_{k}": v for k, v in values.items()})
        return values

    def _snapshot(self, step: int) -> None:
        tensors = self.engine.full_state()
        if tensors is not None:
            journals = {"train": list(self.steps.entries), "validation": list(self.evaluations.entries)}
            self.writer.save(Snapshot(step, self.total, self.tokens, tensors, journals))

    def _preempt(self, step: int) -> None:
        if step > 0:
            self._snapshot(step)
            if self.leads:
                self.writer.finish()
        # No rank leaves before the commit: a launcher that sees one exit may end the others.
        self.ranks.barrier()
        raise Preempted(
            f"stopped on request before step {step + 1} of {self.total}; the state is committed",
            where=f"stages.{self.job.name}",
            hint="Run the pipeline again to resume here.",
        )

    def _result(self, validation: dict[str, float]) -> TrainResult:
        state = self.engine.full_state(moments=False)
        model = self.model
        if self.use_cache is not None:
            model.config.use_cache = self.use_cache
        if self.engine.zero_stage or self.ranks.device.type != "cpu" or self.job.execution.compile:
            model = type(model)(model.config)
        if state is not None:
            plain = {name.partition("/")[2]: value for name, value in state.items()}
            model.load_state_dict(plain, strict=False)
            model.tie_weights()
        medians = {
            name: statistics.median(entry[name] for entry in self.steps.entries) if self.steps.entries else 0.0
            for name in ("tokens_per_second", "mfu")
        }
        return TrainResult(
            model=model.train(False),
            steps=self.total,
            tokens=self.tokens,
            **medians,
            seen=self.sampler.seen(self.total),
            validation=validation,
        )


def pad_token_id(model: PreTrainedModel) -> int:
    """The model's padding token, or 0 for models whose data is never padded (packed tokens, images)."""
    value = getattr(model.config, "pad_token_id", None)
    return int(value) if value is not None else 0


def stream_seed(seed: int, position: int) -> int:
    """Seed of the random numbers drawn for the micro-batch that starts at a stream position."""
    return int.from_bytes(hashlib.sha256(f"forgeline.noise:{seed}:{position}".encode()).digest()[:7], "little")
