"""The one training loop: pretrain, finetune, distil and heal are this function with another model, data and loss.

A step is: take this rank's micro-batches; agree with the other ranks on the number of loss units, on a stop request
and on a checkpoint (one small all-reduce); forward and backward per micro-batch; judge the loss; update, or skip the
update (`tasks/training/loop/divergence.py`). Everything a step depends on is a function of (params, step, weights), so
a
resumed training makes the steps an undisturbed one would have made: bit for bit on the same number of ranks in fp32 on
a CPU.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from infra.errors import ForgelineError, OutOfMemory, Preempted, StageError
from infra.launch.watchdog import Watchdog
from tasks.metrics.class_names import config_labels, with_class_names
from tasks.objective import Feature, Objective, Outputs
from tasks.stage import Job
from tasks.training.checkpoints.checkpoint import Checkpoints, TrainingState
from tasks.training.engine.batch import BatchSplit, split_batch
from tasks.training.engine.batch_norm import GroupedBatchNorm, norm_group
from tasks.training.engine.engine import Engine
from tasks.training.engine.parameter_groups import Tuning
from tasks.training.engine.parameters import Parameters
from tasks.training.engine.ranks import Ranks, training_device
from tasks.training.loop.divergence import SpikeDetector
from tasks.training.loop.loader import Loader, Micro
from tasks.training.loop.record import Record
from tasks.training.loop.result import TrainResult
from tasks.training.loop.sampler import Sampler, steps_for_epochs, stream_seed
from tasks.training.loop.schedule import learning_rate_factor
from tasks.training.loop.selection import Selection
from tasks.training.loop.throughput import ModelFlops, matrix_flops
from tasks.training.loop.validate import Validate
from tasks.training.loop.validate import validate as by_objective
from tasks.training.settings import TrainingParams

log = logging.getLogger(__name__)
SLOWEST_STEP_SECONDS = 120.0
MEETING_SECONDS = 600.0
"""For all ranks to meet and for DeepSpeed to take the model over."""
LossFn = Callable[[Outputs, Mapping[str, torch.Tensor]], torch.Tensor]
"""(outputs, batch) -> summed loss over the units the objective counts in the batch."""
PartsFn = Callable[[Mapping[str, torch.Tensor]], list[float]]
AfterStep = Callable[[int, int, Parameters], None]
"""(steps done, steps in all, parameters): changes weights, as a function of these and of buffers of the model."""


def train(
    job: Job[Any],
    model: PreTrainedModel,
    objective: Objective,
    train_features: Sequence[Feature],
    validation_features: Sequence[Feature],
    params: TrainingParams,
    *,
    loss_fn: LossFn | None = None,
    tuning: Tuning | None = None,
    rebuild: Callable[[], PreTrainedModel] | None = None,
    sampler: Callable[[BatchSplit], Sampler] | None = None,
    validate: Validate | None = None,
    parts: PartsFn | None = None,
    after_step: AfterStep | None = None,
) -> TrainResult:
    """Train `model` in place, resuming from the job's newest checkpoint; every rank calls it alike.

    loss_fn: what to minimise instead of the objective's own loss (distillation); validation always uses the latter.
    tuning: how the layers of a pretrained model learn beside each other.
    rebuild: an empty model of the same form, where its class and config do not make one (adapters).
    sampler: which examples meet in a step, where it is not one permutation of them all (several tasks).
    validate: how held-out examples are judged, where it is not by the objective's own loss and metrics (several tasks).
    parts: what `loss_fn` averages over beside the units, counted and given to it like `Objective.parts`.
    after_step: what changes the weights after each step, once there was an update (pruning).
    Raises Preempted after committing the state if the job was asked to stop, StageError if the loss diverges beyond
    what `params.divergence` allows, if the global batch does not divide, if there are fewer examples than share a loss,
    or if checkpoints cannot be stored for long; OutOfMemory where fewer examples at once may fit.
    """
    split = split_batch(
        params.global_batch_size,
        job.world_size,
        job.execution.per_device_train_batch_size,
        examples_per_loss=objective.examples_per_loss,
        norm_group=norm_group(model, params, where=f"stages.{job.name}"),
        where=f"stages.{job.name}.global_batch_size",
    )
    if len(train_features) < objective.examples_per_loss:
        raise StageError(
            f"{objective.examples_per_loss} examples have one loss, and the training split has {len(train_features)}",
            where=f"stages.{job.name}",
            hint="Add examples, or lower the objective's group size.",
        )
    objective = objective.bound(config=model.config)
    total = params.max_steps or steps_for_epochs(len(train_features), params.epochs or 1, split.global_batch)
    with Watchdog() as watchdog:
        watchdog.expect(MEETING_SECONDS)  # a node that never comes is waited for by the others
        given = (
            train_features,
            validation_features,
            params,
            loss_fn,
            parts,
            tuning,
            rebuild,
            sampler,
            validate or partial(by_objective, objective),
            after_step,
            split,
            total,
        )
        run = _Training(job, model, objective, *given, watchdog)
        watchdog.rest()
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
        parts: PartsFn | None,
        tuning: Tuning | None,
        rebuild: Callable[[], PreTrainedModel] | None,
        sampler: Callable[[BatchSplit], Sampler] | None,
        validate: Validate,
        after_step: AfterStep | None,
        split: BatchSplit,
        total: int,
        watchdog: Watchdog,
    ) -> None:
        self.job, self.objective, self.params, self.total, self.split = job, objective, params, total, split
        self.validation_features, self.validate = validation_features, validate
        self.loss_fn: LossFn = loss_fn or (lambda outputs, batch: objective.loss(outputs, batch)[0])
        self.parts: PartsFn = parts or objective.parts
        self.after_step = after_step
        self.model = model
        self.rebuild = rebuild or (lambda: type(model)(model.config))
        self.sampler = sampler(split) if sampler else Sampler(len(train_features), params.seed, split)
        self.loader = Loader(train_features, objective, self.sampler, job.rank, job.execution.loader_threads)
        self.use_cache = getattr(model.config, "use_cache", None)
        if self.use_cache is not None:
            model.config.use_cache = False  # a training step never reads the attention cache it would fill
        self.ranks = Ranks(job.rank, job.world_size, training_device(job.execution))
        self.batch_norm = GroupedBatchNorm(model, params.norm_group, self.ranks, freeze=params.freeze_batch_norm)
        flops = ModelFlops.of(model, objective, train_features)
        self.engine = Engine(
            model,
            params.optimizer,
            split,
            job.execution,
            self.ranks,
            max_grad_norm=params.max_grad_norm,
            tuning=tuning,
        )
        dtype = torch.bfloat16 if job.execution.precision == "bf16" else torch.float32
        machine_flops = self.ranks.sum(matrix_flops(self.ranks.device, dtype))[0]
        self.record = Record(job, objective.work_unit, flops, machine_flops, total, self.ranks.device)
        self.anchor_every = params.divergence.rollback_every
        self.checkpoints = Checkpoints(job, self.ranks, self.engine, anchor_every=self.anchor_every)
        self.spikes = SpikeDetector(params.divergence)
        self.selection = Selection(
            params,
            objective,
            self.engine.parameters,
            validated=bool(validation_features),
            where=f"stages.{job.name}",
        )
        self.state = TrainingState(total)
        self.watchdog = watchdog
        self.slowest = 0.0
        self.stalled = 0.0

    def run(self) -> TrainResult:
        every = self.params.eval_every
        with contextlib.ExitStack() as stack:
            for part in (self.engine, self.checkpoints, self.record, self.loader, self.batch_norm):
                stack.callback(part.close)
            self._resume()
            fitting = [n for n in (self.state.micro, self.job.micro) if n]
            if fitting and self.job.execution.per_device_train_batch_size == "auto":
                self._use_micro(min(*fitting, self.split.micro))
            self.engine.engine.train()
            while self.state.step < self.total and not self.selection.is_over(self.state):
                self._expect()
                self._step()
                if every and self.state.step % every == 0:
                    self._validate()
            if self.state.judged != self.state.step:
                self._validate()
            if self.state.step % (self.job.execution.checkpoint.permanent_every or self.total + 1) == 0:
                self._save()
                self.checkpoints.require_stored()
            return self._result(self.selection.settle(self.state))

    def _expect(self) -> None:
        limit = self.job.execution.step_timeout
        if limit != "auto":
            self.watchdog.expect(limit)
        elif self.slowest:  # the first step may compile for long
            self.watchdog.expect(max(SLOWEST_STEP_SECONDS, 30.0 * self.slowest))

    def _resume(self) -> None:
        loaded = self.checkpoints.load()
        if loaded is None:
            return
        found, self.state = loaded
        if self.state.total_steps != self.total:
            raise StageError(
                f"the checkpoint belongs to a training run of {self.state.total_steps} steps, not {self.total}",
                where=f"stages.{self.job.name}",
                hint="Its data changed under the same key, which is a bug: report it, and clear the checkpoint.",
            )
        self.state.interruptions += 1
        self.checkpoints.cadence.trained = self.state.trained_seconds
        self.checkpoints.cadence.interruptions = self.state.interruptions
        self.record.restore(found.path)
        self._restore_losses()
        before = {name: found.state[name] for name in ("ranks", "zero_stage")}
        log.info("resumed at step %d of %d, saved by %s", self.state.step, self.total, before)

    def _restore_losses(self) -> None:
        losses = self.record.good_losses(self.params.divergence.window) if self.ranks.leads else None
        self.spikes.restore(self.ranks.broadcast(losses))

    def _step(self) -> None:
        began = time.perf_counter()
        state, step = self.state, self.state.step
        micros = self.loader.step(step + state.offset, last=step + 1 == self.total)
        data_wait = time.perf_counter() - began
        self.checkpoints.poll()
        anchor = step % self.anchor_every == 0 and step > 0
        parts = [sum(counts) for counts in zip(*(self.parts(batch) for _, batch in micros), strict=True)]
        units, work, stop, save, busy, overdue, *parts = self.ranks.sum(
            sum(self.objective.units(batch) for _, batch in micros),
            sum(self.objective.work(batch) for _, batch in micros),
            float(self.job.stop_requested()),
            float(self.ranks.leads and self.checkpoints.due(step)),
            float(self.checkpoints.busy),
            float(self.ranks.leads and self.checkpoints.overdue()),
            *parts,
        )
        if stop:
            self._preempt()
        if anchor and state.updates:
            self.watchdog.rest()
            self.checkpoints.wait()  # the anchor is at this step on every machine, however slow its store
            self._save()
            self._expect()
        elif save and state.updates and not busy:
            self._save()
        if overdue:
            self.watchdog.rest()
            self.checkpoints.wait_for_store(self._save, where=f"stages.{self.job.name}")
            self._expect()

        rate = state.rate_factor * self.params.learning_rate
        rate *= learning_rate_factor(self.params.schedule, step, self.total)
        buffers = self.engine.parameters.buffers.snapshot()
        try:
            loss, norm, step_metrics = self._gradients(micros, units or 1.0, parts)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            self.engine.parameters.buffers.restore(buffers)
            self._shrink(error)
            return
        fault = self.spikes.fault(loss, norm)
        norm_after = self.engine.step(rate, step / self.total, skip=fault is not None)
        if norm is None:
            norm = norm_after
            if not self.engine.overflowed:
                fault = fault or self.spikes.fault(loss, norm)
        if fault or self.engine.overflowed:  # the forward pass has moved them all the same
            self.engine.parameters.buffers.restore(buffers)
        state.step += 1
        state.work += work
        seconds = time.perf_counter() - began
        self.slowest = max(self.slowest, seconds)
        self.checkpoints.cadence.step(seconds - self.stalled, saving=bool(busy))
        state.trained_seconds = self.checkpoints.cadence.trained
        values = {"loss": loss, "learning_rate": rate, "grad_norm": norm, "data_wait": data_wait, **step_metrics}
        if self.stalled:
            values["checkpoint_stall"], self.stalled = self.stalled, 0.0
        if fault:
            values["skipped"] = 1.0
        values |= {"loss_scale": scale["cur_scale"]} if (scale := self.engine.scaler_state()) else {}
        length = max(self.objective.length_of(batch) for _, batch in micros)
        self.record.step(state.step, values, work=work, length=length, seconds=seconds)
        if fault:
            self._skipped(fault, rate)
        elif not self.engine.overflowed:
            self.spikes.accept(loss)
            state.updates += 1
            state.skipped_in_row = 0
            self.selection.updated()
        if self.after_step and self.state.updates:
            self.after_step(self.state.step, self.total, self.engine.parameters)

    def _gradients(
        self, micros: list[Micro], units: float, parts: list[float]
    ) -> tuple[float, float | None, dict[str, float]]:
        """Forward and backward of a step: mean loss over all ranks, the gradient norm where it is known already, notes.

        parts: of all ranks, as `Objective.parts` has them.
        """
        self.objective.step_metrics()  # those of a step that did not fit into memory
        self.batch_norm.begin_step()
        total = 0.0
        for i, (position, batch) in enumerate(micros):
            # Dropout depends on the place in the data stream, so neither ranks nor a resume change it.
            self.engine.seed(stream_seed(self.params.seed, position))
            batch = {name: value.to(self.ranks.device) for name, value in batch.items()}
            if parts:
                batch["step_units"] = torch.tensor([units, *parts], device=self.ranks.device)
            loss = self._loss(batch)
            total += float(loss.detach())
            self.engine.backward(loss, units, last=i == len(micros) - 1)
        self.batch_norm.end_step()
        step_metrics = self.objective.step_metrics()
        total, *values = self.ranks.sum(total, *step_metrics.values())
        return total / units, self.engine.gradient_norm(), dict(zip(step_metrics, values, strict=True))

    def _loss(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What is minimised, summed over the batch's units; with R-Drop of two passes that have to agree."""
        outputs, weight = self._outputs(batch), self.params.r_drop
        loss = self.loss_fn(outputs, batch)
        if not weight:
            return loss
        again = self._outputs(batch)
        apart = self.objective.distillation_loss(outputs, again, batch, 1.0) + self.objective.distillation_loss(
            again, outputs, batch, 1.0
        )
        return 0.5 * (loss + self.loss_fn(again, batch)) + 0.25 * weight * apart

    def _outputs(self, batch: Mapping[str, torch.Tensor]) -> Outputs:
        return self.objective.read(self.engine.forward(batch))

    def _skipped(self, fault: str, rate: float) -> None:
        """An update was not made. Go on, go back, or give up."""
        state, limits = self.state, self.params.divergence
        state.skipped += 1
        state.skipped_in_row += 1
        first = (state.step - 1 + state.offset) * self.split.global_batch
        examples = [first, first + self.split.global_batch]
        self.record.incident(state.step, "skipped", why=fault, stream=examples, learning_rate=rate)
        log.warning("step %d of %d: %s; its update was skipped", state.step, self.total, fault)
        back = state.skipped_in_row > limits.patience
        anchor = (state.step - state.skipped_in_row) // self.anchor_every * self.anchor_every
        if back and anchor and state.rollbacks < limits.max_rollbacks:
            self._go_back(anchor, fault)
        elif back or state.skipped > limits.max_skipped:
            times = f" ({state.skipped_in_row} in a row)" if state.skipped_in_row > 1 else ""
            raise StageError(
                f"{fault} at step {state.step} of {self.total}{times} (learning rate {rate:.3g}; "
                f"{state.skipped} updates skipped, {state.rollbacks} times back)",
                where=f"stages.{self.job.name}",
                hint="Lower learning_rate, lengthen schedule.warmup_ratio, or set max_grad_norm; `divergence` says how "
                "much is borne. records/incidents.jsonl names the examples of each skipped step.",
            )

    def _go_back(self, anchor: int, fault: str) -> None:
        """Return to the state at `anchor` and go on with the data that follows the bad stretch."""
        self.watchdog.rest()
        self.checkpoints.wait()
        self.checkpoints.go_back(anchor)
        left, bad = self.state, self.state.step
        loaded = self.checkpoints.load(anchor)
        assert loaded is not None, "an anchor is kept until two newer ones are"
        found, self.state = loaded
        self.state.offset = left.offset + bad - anchor
        self.state.rollbacks = left.rollbacks + 1
        self.state.rate_factor = left.rate_factor * self.params.divergence.learning_rate_factor
        self.state.micro, self.state.skipped, self.state.skipped_in_row = left.micro, left.skipped, 0
        self.record.restore(found.path, keep_incidents=True)
        self._restore_losses()
        self.record.incident(bad, "went back", why=fault, to=anchor, rate_factor=self.state.rate_factor)
        log.warning("went back from step %d to %d; the data between is left out", bad, anchor)

    def _shrink(self, error: BaseException) -> None:
        """Memory was too small for a micro-batch: go on with half of it. No weight was touched by the failed step."""
        smaller = self.split.halved()
        settings = self.job.execution
        if settings.per_device_train_batch_size != "auto" or smaller is None:
            raise StageError(
                f"out of memory with {self.split.micro} examples at once",
                where=f"stages.{self.job.name}",
                hint="Set per_device_train_batch_size lower or to auto; activation_checkpointing, offload_optimizer "
                "and a higher zero_stage save memory too.",
            ) from error
        if self.ranks.world_size > 1 or self.engine.zero_stage:
            # The other ranks wait in a collective, and ZeRO has half a step in its buckets: start the job again.
            raise OutOfMemory(smaller.micro, where=f"stages.{self.job.name}") from error
        self.engine.drop_gradients()
        if self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()
        self._use_micro(smaller.micro)
        self.record.incident(self.state.step, "smaller micro-batch", micro=smaller.micro, why=str(error)[:200])
        log.warning("out of memory: going on with %d examples at once", smaller.micro)

    def _use_micro(self, micro: int) -> None:
        # It may have been found with another number of ranks.
        self.split = self.split.fitting(max(micro, self.split.together)) or self.split
        self.state.micro = self.split.micro
        self.sampler = replace(self.sampler, split=self.split)
        self.loader.resplit(self.sampler)

    def _validate(self) -> None:
        self.watchdog.rest()
        began, state = time.perf_counter(), self.state
        self.engine.engine.eval()
        with self.selection.evaluated_weights():
            values = self.validate(self._outputs, self.validation_features, self.ranks)
            values = with_class_names(self.ranks.broadcast(values), config_labels(self.model.config))
            self.selection.judge(state, values)
        self.engine.engine.train()
        seconds = time.perf_counter() - began
        trained = state.trained_seconds
        self.record.evaluation(state.step, values, work=state.work, trained=trained, seconds=seconds)

    def _save(self) -> None:
        self.stalled += self.checkpoints.save(self.state, self.record.files())

    def _preempt(self) -> None:
        self.watchdog.rest()
        kept = "the state is committed"
        if self.state.updates:
            self.checkpoints.wait()
            self._save()
            try:
                self.checkpoints.require_stored()
            except ForgelineError as error:
                kept = f"this state could not be stored ({error.what}); an earlier one counts"
        # No rank leaves before the commit: a launcher that sees one exit may end the others.
        self.ranks.barrier()
        raise Preempted(
            f"stopped on request before step {self.state.step + 1} of {self.total}; {kept}",
            where=f"stages.{self.job.name}",
            hint="Run the pipeline again to resume here.",
        )

    def _result(self, validation: dict[str, float]) -> TrainResult:
        weights = self.engine.parameters.weights()
        best = {"best_step": float(self.state.best_step)} if self.params.keep == "best" else {}
        model = self.model
        if self.use_cache is not None:
            model.config.use_cache = self.use_cache
        if self.engine.zero_stage or self.ranks.device.type != "cpu" or self.job.execution.compile:
            model = self.rebuild()
        if weights is not None:
            model.load_state_dict(weights, strict=False)
            model.tie_weights()
        return TrainResult(
            model=model.train(False),
            steps=self.state.step,
            work=self.state.work,
            unit=self.objective.work_unit,
            summary={**self.record.summary(), **best},
            seen=self.sampler.seen(self.state.step + self.state.offset),
            validation=validation,
        )


def _is_out_of_memory(error: BaseException) -> bool:
    """torch has a class for CUDA only; on a CPU the allocator raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
