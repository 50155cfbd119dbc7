"""DeepSpeed behind a narrow door: the same calls on CPU (gloo) and GPU (nccl), one process or many, ZeRO 0 to 3.

What the engine adds to `deepspeed.initialize`:
- The average is over the global batch's units (tokens or examples), whatever their spread over ranks and
  micro-batches: each micro-batch's *sum* is divided by the global count, and DeepSpeed's own divisions by the
  accumulation steps and the ranks are multiplied out beforehand.
- The learning rate is set by the caller each step (DeepSpeed's own schedulers are one step late).
- Activation checkpointing through the model's own switch, and torch.compile, where they are asked for.
- An update can be skipped at every ZeRO stage: the gradients go, weights and moments stay as they are.
- `parameters`: what this rank holds of weights and Adam moments, to save and to set
(`tasks/training/engine/parameters.py`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

# The names are read when DeepSpeed is first imported, so they are set before.
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")

import torch
from transformers import PreTrainedModel

from infra.errors import StageError
from infra.execution import Execution
from tasks.models.inputs import model_inputs
from tasks.training.engine.batch import BatchSplit
from tasks.training.engine.deepspeed_config import deep_compile, deepspeed_config, zero_stage
from tasks.training.engine.optimizers import make_optimizer, moments
from tasks.training.engine.parameter_groups import Tuning, group_rate, parameter_groups
from tasks.training.engine.parameters import Parameters
from tasks.training.engine.ranks import Ranks
from tasks.training.engine.shards import ShardReader
from tasks.training.settings import OptimizerParams


def _import_deepspeed(device: torch.device) -> Any:
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops

    # Its shared-memory collectives would be compiled here for minutes, and need a C++ compiler; gloo serves.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class Engine:
    """A model under training. Every rank makes one and calls the same methods in the same order."""

    def __init__(
        self,
        model: PreTrainedModel,
        optimizer: OptimizerParams,
        split: BatchSplit,
        execution: Execution,
        ranks: Ranks,
        *,
        max_grad_norm: float,
        tuning: Tuning | None = None,
    ) -> None:
        self.ranks = ranks
        self._skip = False
        self._fp16 = execution.precision == "fp16"
        self.device = ranks.device
        self.zero_stage = zero_stage(execution, ranks.world_size)
        self.max_grad_norm = max_grad_norm
        config = deepspeed_config(execution, split, max_grad_norm)
        _check_features(model, execution, ranks.device)
        ranks.join()
        deepspeed = _import_deepspeed(self.device)
        self._all_parameters = list(model.parameters())
        groups = parameter_groups(model, optimizer, tuning)
        kept = {parameter: moments(optimizer, group) for group in groups for parameter in group["params"]}
        self._optimizer = make_optimizer(optimizer, groups)
        # DeepSpeed calls it when gradients are reduced and their norm is known, and clears them after it.
        update = self._optimizer.step
        self._optimizer.step = lambda closure=None: None if self._update_is_skipped() else update(closure)  # type: ignore[method-assign,assignment]
        if execution.activation_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        self.engine, *_ = deepspeed.initialize(
            model=model, optimizer=self._optimizer, config=config, dist_init_required=False
        )
        if self.zero_stage == 0 and ranks.world_size == 1:
            # It would copy every gradient into one buffer and back to add up nothing: 2 to 3% of a step.
            self.engine.enable_backward_allreduce = False
        if execution.compile:
            self.engine.compile(backend=execution.compile)
        self.parameters = Parameters(self.engine, self._optimizer, kept, self.zero_stage, ranks)

    @property
    def module(self) -> PreTrainedModel:
        module: PreTrainedModel = self.engine.module
        return module

    def seed(self, seed: int) -> None:
        """Of what the forward pass draws on this device (dropout). `torch.manual_seed` would also walk the stack for
        each kind of device there is not: a twentieth of a short step."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> Any:
        """The model's output for a batch already on the device."""
        return self.engine(**model_inputs(batch, self.module))

    def backward(self, loss_sum: torch.Tensor, global_units: float, *, last: bool) -> None:
        """Accumulate the gradient of loss_sum / global_units; at the last micro-batch, reduce over the ranks."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss_sum * (self.ranks.world_size / global_units), scale_wrt_gas=False)

    def gradient_norm(self) -> float | None:
        """L2 norm before clipping, clipping on the way. None at ZeRO stages 1 to 3, where only `step` knows it."""
        if self.zero_stage:
            return None
        parameters = [p for p in self._all_parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.max_grad_norm and float(norm) > self.max_grad_norm:  # otherwise it would multiply by one
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        return float(norm)

    def step(self, learning_rate: float, progress: float = 1.0, *, skip: bool = False) -> float | None:
        """Update the weights, or with `skip` only drop the gradients. Returns ZeRO's gradient norm.

        progress: share of the steps that are done. Where the norm is not finite, the update is skipped too.
        """
        self._skip = skip
        for group in self._optimizer.param_groups:
            group["lr"] = group_rate(group, learning_rate, progress)
        self.engine.step()
        norm = self.engine.get_global_grad_norm() if self.zero_stage else None
        return None if norm is None else float(norm)

    @property
    def overflowed(self) -> bool:
        """Whether the last update was skipped because fp16 overflowed; the loss scale was then halved."""
        return self._scaler() is not None and bool(self.engine.optimizer.overflow)

    def scaler_state(self) -> dict[str, float]:
        """The dynamic loss scale and its counters; empty unless training in fp16."""
        scaler = self._scaler()
        return {} if scaler is None else {name: float(getattr(scaler, name, 0.0)) for name in SCALER_FIELDS}

    def _scaler(self) -> Any | None:
        return self.engine.optimizer.loss_scaler if self._fp16 else None

    def drop_gradients(self) -> None:
        """Forget what was accumulated. At ZeRO 0 only: the other stages keep gradients in buckets of their own."""
        assert self.zero_stage == 0
        self.engine.zero_grad()

    def _update_is_skipped(self) -> bool:
        norm = self.engine.optimizer._global_grad_norm if self.zero_stage else 0.0
        return self._skip or not math.isfinite(float(norm))

    def load(self, shards: ShardReader, updates: int, scaler: Mapping[str, float]) -> None:
        """Set weights, moments and buffers to those saved after `updates` updates, and the loss scale. Collective.

        Raises StageError if the parameters are not those of this model.
        """
        self.parameters.load(shards, updates)
        for field, value in scaler.items() if self._fp16 else ():
            setattr(self._scaler(), field, value if field == "cur_scale" else int(value))

    def close(self) -> None:
        """Drop DeepSpeed's hooks and buffers; the process group stays for the next engine of this process."""
        if self.module.is_activation_checkpointing:
            self.module.activation_checkpointing_disable()  # type: ignore[no-untyped-call]
        self.engine.destroy()


def _check_features(model: PreTrainedModel, execution: Execution, device: torch.device) -> None:
    on_gpu = {"execution.precision: fp16": execution.precision == "fp16", "DeepCompile": deep_compile(execution)}
    for feature in (name for name, wanted in on_gpu.items() if wanted and device.type == "cpu"):
        raise StageError(f"{feature} needs a GPU", hint="On a CPU, use fp32 and torch.compile.")
    if execution.activation_checkpointing and not model.supports_gradient_checkpointing:
        raise StageError(
            f"{type(model).__name__} cannot recompute its activations",
            where="execution.activation_checkpointing",
            hint="Set it to false; a smaller per_device_train_batch_size saves memory as well.",
        )
    known = torch._dynamo.list_backends(exclude_tags=()) if execution.compile else []
    if execution.compile and execution.compile not in known:
        hint = f"Known to this torch: {', '.join(sorted(known))}."
        raise StageError(f"no backend {execution.compile!r}", where="execution.compile", hint=hint)
