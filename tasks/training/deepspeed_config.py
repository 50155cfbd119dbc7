"""The DeepSpeed config of a stage, made from its params and execution settings. Pure and light: a plan can check it.

DeepSpeed ignores unknown top-level keys without a word, and a key given twice (once here, once passed through) would
train something else than the pipeline says; both are refused here.
"""

from __future__ import annotations

import difflib
from typing import Any

from infra.errors import StageError
from infra.execution import Execution
from tasks.training.batch import BatchSplit

# Keys that the pipeline decides elsewhere; what to write instead.
OWNED = {
    "train_batch_size": "global_batch_size of the stage",
    "train_micro_batch_size_per_gpu": "execution.per_device_train_batch_size",
    "gradient_accumulation_steps": "global_batch_size of the stage",
    "gradient_clipping": "max_grad_norm of the stage",
    "optimizer": "optimizer and learning_rate of the stage",
    "scheduler": "schedule of the stage",
    "fp16": "execution.precision",
    "bf16": "execution.precision",
    "torch_autocast": "execution.precision",
    "seed": "seed of the stage",
}
# Top-level keys of DeepSpeed 0.19 that may be passed through; DeepSpeed itself checks what is inside them.
PASSED = frozenset(
    {
        "activation_checkpointing",
        "aio",
        "comms_logger",
        "communication_data_type",
        "data_types",
        "disable_allgather",
        "dump_state",
        "flops_profiler",
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


def deepspeed_config(execution: Execution, split: BatchSplit, max_grad_norm: float) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`. Raises StageError on unknown, owned or contradicting settings."""
    extra = dict(execution.deepspeed)
    for key in extra:
        if key in OWNED:
            raise StageError(
                f"{key} would contradict the pipeline", where=f"execution.deepspeed.{key}", hint=f"Set {OWNED[key]}."
            )
        if key not in PASSED:
            near = difflib.get_close_matches(key, PASSED, 1)
            raise StageError(
                f"unknown DeepSpeed key{f'; did you mean {near[0]}?' if near else ''}",
                where=f"execution.deepspeed.{key}",
                hint=f"DeepSpeed would ignore it silently. Known: {', '.join(sorted(PASSED))}.",
            )
    zero = dict(extra.pop("zero_optimization", {}))
    if zero.setdefault("stage", execution.zero_stage) != execution.zero_stage:
        raise StageError(
            f"stage {zero['stage']} contradicts execution.zero_stage {execution.zero_stage}",
            where="execution.deepspeed.zero_optimization.stage",
            hint="Set execution.zero_stage only.",
        )
    return {
        "train_batch_size": split.global_batch,
        "train_micro_batch_size_per_gpu": split.micro,
        "gradient_accumulation_steps": split.accumulation,
        # Stage 0 is clipped by the engine itself, which needs the norm anyway and gets none from DeepSpeed.
        "gradient_clipping": max_grad_norm if execution.zero_stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        **_precision(execution),
        **extra,
    }


def _precision(execution: Execution) -> dict[str, Any]:
    if execution.precision == "fp32":
        return {}
    if execution.precision == "fp16":
        # Loss scaling skips steps on overflow, and a skipped step would break "step n is a function of the data".
        raise StageError("training in fp16 is not supported", where="execution.precision", hint="Use bf16 or fp32.")
    # Autocast keeps the weights in fp32 at every ZeRO stage; DeepSpeed's own bf16 drifts without ZeRO, where it keeps
    # no fp32 copy.
    return {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
