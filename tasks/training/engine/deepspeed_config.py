"""The DeepSpeed config of a stage, made from its params and execution settings. Pure and light: a plan checks it.

`execution.deepspeed` may hold any key of DeepSpeed's own config, so that a JSON file written for it can be kept. What
the pipeline says as well must say the same there, or `auto`; and DeepSpeed ignores unknown top-level keys without a
word. A contradiction and an unknown key are refused here.
"""

from __future__ import annotations

import difflib
from typing import Any

from infra.errors import StageError
from infra.execution import Execution
from tasks.objective import Objective
from tasks.stage import Fault, StageParams
from tasks.training.engine.batch import BatchSplit, split_batch
from tasks.training.settings import TrainingParams

# Keys that the pipeline decides elsewhere; what to write instead.
OWNED = {
    "train_batch_size": "global_batch_size of the stage",
    "train_micro_batch_size_per_gpu": "execution.per_device_train_batch_size",
    "gradient_accumulation_steps": "global_batch_size of the stage",
    "gradient_clipping": "max_grad_norm of the stage",
    "optimizer": "optimizer and learning_rate of the stage",
    "scheduler": "schedule of the stage",
    "fp16.enabled": "execution.precision",
    "bf16": "execution.precision",
    "torch_autocast": "execution.precision",
    "seed": "seed of the stage",
    "zero_optimization.stage": "execution.zero_stage",
    "zero_optimization.offload_optimizer.device": "execution.offload_optimizer",
    "zero_optimization.offload_param.device": "execution.offload_parameters",
}
# Top-level keys of DeepSpeed 0.19 that may be passed through; DeepSpeed itself checks what is inside them.
PASSED = frozenset(
    {
        "activation_checkpointing",
        "aio",
        "comms_logger",
        "communication_data_type",
        "compile",
        "data_types",
        "disable_allgather",
        "dump_state",
        "flops_profiler",
        "fp16",
        "memory_breakdown",
        "prescale_gradients",
        "gradient_predivide_factor",
        "sparse_gradients",
        "steps_per_print",
        "tensor_parallel",
        "timers",
        "wall_clock_breakdown",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "zero_optimization",
    }
)


def zero_stage(execution: Execution, ranks: int) -> int:
    """The ZeRO stage that `ranks` processes train at.

    One rank has nobody to share with: unless it offloads, stages 1 to 3 only keep the fp32 weights twice and copy
    between the two. It trains at stage 0, to the same result. fp16 needs the second copy; DeepCompile knows no stage 0.
    """
    offloads = execution.offload_optimizer or execution.offload_parameters
    alone = ranks == 1 and not offloads and execution.precision != "fp16" and not deep_compile(execution)
    return 0 if alone else execution.zero_stage


def deep_compile(execution: Execution) -> bool:
    """DeepSpeed's own compiler, asked for by `deepspeed: {compile: {deepcompile: true}}` beside `compile: inductor`."""
    given = execution.deepspeed.get("compile")
    return isinstance(given, dict) and bool(given.get("deepcompile"))


def deepspeed_config(execution: Execution, split: BatchSplit, max_grad_norm: float) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`. Raises StageError on unknown or contradicting settings."""
    ours = {
        "train_batch_size": split.global_batch,
        "train_micro_batch_size_per_gpu": split.micro,
        "gradient_accumulation_steps": split.accumulation,
        "gradient_clipping": max_grad_norm,
        "fp16": {"enabled": execution.precision == "fp16"},
        "zero_optimization": _zero(execution),
        **_precision(execution),
    }
    unknown = next((key for key in execution.deepspeed if key not in OWNED and key not in PASSED), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown, PASSED | OWNED.keys(), 1)
        raise StageError(
            f"unknown DeepSpeed key{f'; did you mean {near[0]}?' if near else ''}",
            where=f"execution.deepspeed.{unknown}",
            hint=f"DeepSpeed would ignore it silently. Known: {', '.join(sorted(PASSED))}.",
        )
    config = {
        "zero_allow_untested_optimizer": True,
        # Offloading works with torch's AdamW; DeepSpeed's own for the CPU would be compiled for minutes.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        **_agreed(execution.deepspeed, ours),
    }
    stage = zero_stage(execution, split.ranks)
    config["zero_optimization"] = {**config["zero_optimization"], "stage": stage}
    if stage == 0:
        # The engine clips by itself, because it needs the norm anyway and gets none from DeepSpeed.
        config["gradient_clipping"] = 0.0
    return config


def _agreed(given: dict[str, Any], ours: dict[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """`ours` and what `given` adds to it. Raises StageError where the two differ."""
    both = dict(ours)
    for name, value in given.items():
        place = (*path, name)
        if value == "auto":
            continue
        if isinstance(value, dict) and isinstance(ours.get(name, {}), dict):
            if merged := _agreed(value, ours.get(name, {}), place):
                both[name] = merged
        elif name not in ours and place[0] not in OWNED:
            both[name] = value
        elif name not in ours or value != ours[name]:
            owner = OWNED.get(".".join(place)) or OWNED[place[0]]
            which = f", which makes it {ours[name]!r}" if name in ours else ""
            raise StageError(
                f"{value!r} contradicts {owner}{which}",
                where=f"execution.deepspeed.{'.'.join(place)}",
                hint=f"Set {owner} only, and leave it out here or write auto.",
            )
    return both


def _zero(execution: Execution) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": execution.zero_stage}
    offload = (("offload_optimizer", "offload_optimizer", 1), ("offload_parameters", "offload_param", 3))
    for setting, key, needed in offload:
        if getattr(execution, setting):
            if execution.zero_stage < needed:
                raise StageError(
                    f"ZeRO {execution.zero_stage} has nothing to offload",
                    where=f"execution.{setting}",
                    hint=f"Set execution.zero_stage to {needed}{' or more' if needed < 3 else ''}.",
                )
            zero[key] = {"device": "cpu"}
    return zero


def _precision(execution: Execution) -> dict[str, Any]:
    if execution.precision == "fp32":
        return {}
    if execution.precision == "fp16":
        if execution.zero_stage == 0:
            raise StageError(
                "fp16 needs ZeRO 1 to 3, which keep weights in fp32 beside it",
                where="execution.precision",
                hint="Set execution.zero_stage to 1, or use bf16.",
            )
        return {}
    # Autocast keeps the weights in fp32 at every ZeRO stage; DeepSpeed's own bf16 drifts without ZeRO, where it keeps
    # no fp32 copy.
    return {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}


def examples_per_loss(params: StageParams) -> int:
    """Of the objective that the stage chooses; 1 where a model brings it: the job checks then."""
    chosen = getattr(params, "objective", None)
    return chosen.examples_per_loss if isinstance(chosen, Objective) else 1


def training_faults(params: StageParams, execution: Execution) -> list[Fault]:
    """What a plan can say before launch of every training in `params`: its batch must split, its settings agree."""
    faults = []
    for name in type(params).model_fields:
        value = getattr(params, name)
        if isinstance(value, StageParams):
            faults += [Fault((name, *fault.path), fault.message) for fault in training_faults(value, execution)]
    if isinstance(params, TrainingParams):
        try:
            split = split_batch(
                params.global_batch_size,
                execution.processes,
                execution.per_device_train_batch_size,
                examples_per_loss=examples_per_loss(params),
            )
        except StageError as error:
            return [*faults, Fault(("global_batch_size",), f"{error.what}. {error.hint}")]
        if params.optimizer.name == "muon" and zero_stage(execution, execution.processes):
            message = "Muon needs whole matrices, which ZeRO 1 to 3 take apart: set execution.zero_stage to ZeRO 0"
            faults.append(Fault(("optimizer", "name"), message))
        try:
            deepspeed_config(execution, split, params.max_grad_norm)
        except StageError as error:
            faults.append(Fault((), f"{error.where}: {error.what}. {error.hint}"))
    return faults
