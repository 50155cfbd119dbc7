"""DeepSpeed behind a narrow door: the same calls on CPU (gloo) and GPU (nccl), one process or many, ZeRO 0 to 3.

What the engine adds to `deepspeed.initialize`:
- The average is over the global batch's units (tokens or examples), whatever their spread over ranks and
  micro-batches: each micro-batch's *sum* is divided by the global count, and DeepSpeed's own divisions by the
  accumulation steps and the ranks are multiplied out beforehand.
- The learning rate is set by the caller each step (DeepSpeed's own schedulers are one step late).
- Activation checkpointing through the model's own switch, and torch.compile, where they are asked for.
- Weights and Adam moments can be read and set as whole fp32 tensors at every ZeRO stage, by parameter name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

# The names are read when DeepSpeed is first imported, so they are set before.
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")

import torch
from transformers import PreTrainedModel

from infra.errors import StageError
from infra.execution import Execution
from tasks.training.batch import BatchSplit
from tasks.training.deepspeed_config import deepspeed_config
from tasks.training.ranks import Ranks
from tasks.training.settings import OptimizerParams

MOMENTS = ("exp_avg", "exp_avg_sq")


def _import_deepspeed(device: torch.device) -> Any:
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops

    # Its shared-memory collectives would be compiled here for minutes, and need a C++ compiler; gloo serves.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


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
    ) -> None:
        self.ranks, self.split = ranks, split
        self.device = ranks.device
        self.zero_stage = execution.zero_stage
        self.max_grad_norm = max_grad_norm
        config = deepspeed_config(execution, split, max_grad_norm)
        _check_features(model, execution)
        ranks.join()
        deepspeed = _import_deepspeed(self.device)
        self._adam = torch.optim.AdamW(
            _decay_groups(model, optimizer.weight_decay), lr=0.0, betas=optimizer.betas, eps=optimizer.eps
        )
        if execution.activation_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        self.engine, *_ = deepspeed.initialize(
            model=model, optimizer=self._adam, config=config, dist_init_required=False
        )
        if execution.compile:
            self.engine.compile(backend=execution.compile)

    @property
    def module(self) -> PreTrainedModel:
        module: PreTrainedModel = self.engine.module
        return module

    def logits(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The model's output for a batch already on the device."""
        output: torch.Tensor = self.engine(**model_inputs(batch)).logits
        return output

    def backward(self, loss_sum: torch.Tensor, global_units: float) -> None:
        """Accumulate the gradient of loss_sum / global_units; at the last micro-batch, reduce over the ranks."""
        self.engine.backward(loss_sum * (self.split.accumulation * self.ranks.world_size / global_units))

    def gradient_norm(self) -> float | None:
        """L2 norm before clipping, clipping on the way. None at ZeRO stages 1 to 3, where only `step` knows it."""
        if self.zero_stage:
            return None
        norm = torch.nn.utils.clip_grad_norm_(self.engine.module.parameters(), self.max_grad_norm or float("inf"))
        return float(norm)

    def step(self, learning_rate: float) -> float | None:
        """Finish a micro-batch; after the last of a global batch, update the weights. Returns ZeRO's gradient norm."""
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        self.engine.step()
        norm = self.engine.get_global_grad_norm() if self.zero_stage else None
        return None if norm is None else float(norm)

    def full_state(self, *, moments: bool = True) -> dict[str, torch.Tensor] | None:
        """A copy in CPU memory, on rank 0: `weights/NAME` in fp32, `exp_avg/NAME`, `exp_avg_sq/NAME`, `buffers/NAME`.

        Collective. Independent of world size and ZeRO stage, so that another layout can load it.
        """
        state: dict[str, torch.Tensor] = {}
        if moments:
            self._link_moments()
        for name, parameter in self.engine.module.named_parameters():
            for part in ("weights", *MOMENTS) if moments else ("weights",):
                value = self._read(parameter, part)
                if self.ranks.rank == 0 and value is not None:
                    state[f"{part}/{name}"] = value.detach().to("cpu", torch.float32, copy=True).contiguous()
        if self.ranks.rank:
            return None
        saved = self.engine.module.state_dict().keys()
        for name, buffer in self.engine.module.named_buffers():
            if name in saved:
                state[f"buffers/{name}"] = buffer.detach().to("cpu", copy=True).contiguous()
        return state

    def load_full_state(self, state: Mapping[str, torch.Tensor], step: int) -> None:
        """Set weights, buffers and moments from `full_state`, taken after `step` optimizer steps. Collective."""
        if self.zero_stage and step:
            self._allocate_partitioned_moments()
        for name, parameter in self.engine.module.named_parameters():
            for part in ("weights", *MOMENTS):
                if f"{part}/{name}" in state:
                    self._write(parameter, part, state[f"{part}/{name}"].to(self.device))
        buffers = dict(self.engine.module.named_buffers())
        for name, value in state.items():
            if name.startswith("buffers/"):
                buffers[name.removeprefix("buffers/")].copy_(value)
        self._set_adam_step(step)

    def close(self) -> None:
        """Drop DeepSpeed's hooks and buffers; the process group stays for the next engine of this process."""
        if self.module.is_activation_checkpointing:
            self.module.activation_checkpointing_disable()  # type: ignore[no-untyped-call]
        self.engine.destroy()

    def _read(self, parameter: torch.nn.Parameter, part: str) -> torch.Tensor | None:
        if self.zero_stage == 0:
            return parameter.data if part == "weights" else self._adam.state[parameter].get(part)
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        value: torch.Tensor | None = (
            safe_get_full_fp32_param(parameter) if part == "weights" else safe_get_full_optimizer_state(parameter, part)
        )
        return value

    def _write(self, parameter: torch.nn.Parameter, part: str, value: torch.Tensor) -> None:
        if self.zero_stage == 0:
            if part == "weights":
                parameter.data.copy_(value)
            else:
                self._adam.state[parameter][part] = value.clone()
            return
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if part == "weights":
            safe_set_full_fp32_param(parameter, value)
            # The copy that the forward pass reads is another one, renewed only by a step.
            if self.zero_stage == 3:
                import deepspeed

                with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                    parameter.data.copy_(value)
            else:
                parameter.data.copy_(value)
        else:
            safe_set_full_optimizer_state(parameter, value, part)

    def _allocate_partitioned_moments(self) -> None:
        """ZeRO makes the moments at the first step; a restored engine needs them before."""
        zero = self.engine.optimizer
        flats = zero.fp32_partitioned_groups_flat if self.zero_stage == 3 else zero.single_partition_of_fp32_groups
        for flat in flats:
            if not self._adam.state[flat]:
                self._adam.state[flat] = {name: torch.zeros_like(flat) for name in MOMENTS}
        self._link_moments()

    def _link_moments(self) -> None:
        """Tell each parameter where its moments lie. ZeRO 1 and 2 do so once, when only the first group has any."""
        if self.zero_stage in (1, 2):
            self.engine.optimizer._hp_optimizer_states_linked = False
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _set_adam_step(self, step: int) -> None:
        for state in self._adam.state.values():
            if state:  # DeepSpeed looks up parameters it does not own, which leaves empty entries
                state["step"] = torch.tensor(float(step))


def _check_features(model: PreTrainedModel, execution: Execution) -> None:
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


def model_inputs(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What of a batch the model sees: all but the labels, because the objective computes the loss."""
    return {name: value for name, value in batch.items() if name != "labels"}


def _decay_groups(model: PreTrainedModel, weight_decay: float) -> list[dict[str, Any]]:
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
