"""Execution settings: how and where a stage runs. They never enter a key, so they live in types of their own.

The `execution:` block of a pipeline holds `default:` and, per stage name, what differs from it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Base of execution-side settings: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CheckpointSettings(Settings):
    """When training state is committed to the store."""

    every: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="Optimizer steps between checkpoints. `auto`: often enough that work lost to failures and time "
        "spent on saving, both as measured, cost least together.",
    )
    keep: int = Field(2, ge=1, description="Newest checkpoints kept while a stage trains; older ones are deleted.")
    permanent_every: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Steps between checkpoints that stay when the stage has finished. None: none stays."
    )
    patience: float = Field(
        600.0,
        gt=0,
        description="Seconds that training goes on while checkpoints cannot be stored. Then it waits as long again for "
        "the store, and fails. A save in which nothing moves for so long has failed.",
    )


class Execution(Settings):
    """How one stage runs."""

    launcher: Literal["local"] = Field("local", description="Where the job's processes run.")
    processes: int = Field(1, ge=1, description="Ranks of a training stage; other stages always use one process.")
    threads: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="CPU threads of each process. `auto`: the machine's cores divided by `processes`."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto`: CUDA where torch sees one, else CPU.")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="Number format of training.")
    zero_stage: int = Field(
        0,
        ge=0,
        le=3,
        description="DeepSpeed ZeRO stage: what is partitioned over the ranks. "
        "A single rank that offloads nothing has nothing to share and trains at stage 0.",
    )
    per_device_train_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="Examples per rank and forward pass; accumulation makes up the global batch. "
        "`auto`: as many as fit, beginning with the global batch divided by the ranks.",
    )
    checkpoint: CheckpointSettings = Field(default_factory=CheckpointSettings, description="Checkpoint cadence.")
    activation_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third more time."
    )
    offload_optimizer: bool = Field(False, description="Keep optimizer state in host memory; needs ZeRO 1 to 3.")
    offload_parameters: bool = Field(False, description="Keep parameters in host memory too; needs ZeRO 3.")
    compile: str | None = Field(
        None, min_length=1, description="Backend for torch.compile, e.g. `inductor` (on a CPU it needs a C++ compiler)."
    )
    deepspeed: dict[str, Any] = Field(
        default_factory=dict,
        description="Further DeepSpeed config keys, or the path of a JSON file with them, relative to the pipeline "
        "file. `auto` leaves a key to us; a value that contradicts the pipeline is refused.",
    )
    targets: dict[str, float] = Field(
        default_factory=dict,
        description="Validation metrics to reach, e.g. `{loss: 3.5}`: steps, seconds and tokens to each are recorded.",
    )
    step_timeout: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto",
        description="Seconds after which a training step counts as hung: its stacks are logged and the job is started "
        "again from its last checkpoint. `auto`: 30 times the slowest step so far, at least two minutes.",
    )
    loader_threads: int = Field(
        4, ge=1, description="Threads of each rank that decode images and sounds while the step before them runs."
    )
    retries: int = Field(2, ge=0, description="Attempts after a transient failure. A bad config is never retried.")
    timeout: float | None = Field(None, gt=0, description="Seconds after which the job is ended. None: no limit.")
