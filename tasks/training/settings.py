"""Parameters shared by every stage that trains. All of them are identity: each changes the weights that come out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.objective import ObjectiveField
from tasks.stage import AddedLater, StageParams


class OptimizerParams(StageParams):
    """The optimizer, apart from its learning rate."""

    name: Literal["adamw", "lion", "muon"] = Field(
        "adamw",
        description="`adamw` (Loshchilov and Hutter, 2019). `lion` (Chen et al., 2023): half the memory, a third to a "
        "tenth of the rate, more decay. `muon` (Jordan et al., 2024): for the matrices of layers, AdamW for the rest; "
        "at ZeRO 0.",
    )
    weight_decay: float = Field(
        0.01, ge=0, description="Decoupled decay per unit of learning rate; matrices only, never norms and biases."
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999),
        description="Decay rates of the running mean of gradients and of their squares; of `lion` those of its update "
        "and of its momentum; the first is Muon's momentum.",
    )
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second moment, for numerical stability.")


ENOUGH = 16
"""Good losses that are needed before a spike can be recognised."""


class DivergenceParams(StageParams):
    """What happens when the loss is not finite or jumps. Identity: it decides which updates are made."""

    zscore: float = Field(
        0.0, ge=0, description="Robust z-score from which a loss counts as a spike. 0: only losses that are not finite."
    )
    window: int = Field(64, ge=ENOUGH, description="Good losses that the z-score is taken over.")
    patience: int = Field(3, ge=0, description="Updates skipped in a row before the training goes back to an anchor.")
    max_skipped: int = Field(20, ge=0, description="Updates skipped in all; one more fails the stage.")
    rollback_every: int = Field(500, ge=1, description="Steps between the anchors a training run can go back to.")
    max_rollbacks: int = Field(2, ge=0, description="Times a training run goes back; one more fails the stage.")
    learning_rate_factor: float = Field(
        1.0, gt=0, le=1, description="The learning rate is multiplied by this at each way back."
    )


class ScheduleParams(StageParams):
    """How the learning rate moves over the steps."""

    name: Literal["cosine", "linear", "constant", "polynomial", "wsd"] = Field(
        "cosine",
        description="Shape of the decay after warm-up. `wsd`: constant, then down over the last `decay_ratio` of the "
        "steps (Hu et al., 2024).",
    )
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="Share of the steps spent rising linearly to the peak.")
    min_ratio: float = Field(
        0.0, ge=0, le=1, description="Share of the peak left at the last step. 0: decays to nothing."
    )
    decay_ratio: float = Field(0.1, gt=0, le=1, description="Share of the steps that `wsd` decays over, by a root.")
    power: float = Field(1.0, gt=0, description="Exponent of `polynomial`. 1: linear.")


class Budget(StageParams):
    """How long to train and at which rate; exactly one of `epochs` and `max_steps`."""

    learning_rate: float = Field(5e-4, gt=0, description="Peak learning rate.")
    global_batch_size: int = Field(
        32,
        ge=1,
        description="Examples per optimizer step. How they are split over ranks and micro-batches is execution.",
    )
    epochs: float | None = Field(None, gt=0, description="Passes over the training split. None: `max_steps` decides.")
    max_steps: int | None = Field(None, ge=1, description="Optimizer steps. None: `epochs` decides.")

    @model_validator(mode="after")
    def _one_length(self) -> Budget:
        if (self.epochs is None) == (self.max_steps is None):
            raise ValueError("give exactly one of `epochs` and `max_steps`")
        return self


class TrainingParams(Budget):
    """What every training stage accepts beside its own fields."""

    optimizer: OptimizerParams = Field(default_factory=OptimizerParams, description="The optimizer and its constants.")
    schedule: ScheduleParams = Field(default_factory=ScheduleParams, description="The learning-rate schedule.")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradients are scaled down to this global L2 norm. 0: never.")
    divergence: DivergenceParams = Field(
        default_factory=DivergenceParams, description="What happens when the loss is not finite or jumps."
    )
    r_drop: float = Field(
        0.0,
        ge=0,
        description="Weight of the divergence of two passes under different dropout (Wu et al., 2021). 0: one pass.",
    )
    norm_group: Annotated[int, AddedLater()] = Field(
        32,
        ge=2,
        description="Consecutive examples of a step that BatchNorm normalises together (Hoffer et al., 2017), whatever "
        "ranks and micro-batches are. Another number is for models with BatchNorm alone.",
    )
    freeze_batch_norm: Annotated[bool, AddedLater()] = Field(
        False, description="BatchNorm keeps its weights and running statistics, and normalises by them in training too."
    )
    seed: int = Field(0, ge=0, description="Decides initial weights, data order and dropout.")
    eval_every: int = Field(
        0, ge=0, description="Steps between evaluations on the validation split. 0: only after the last step."
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share that a moving average of the weights keeps of itself each step; the average is what is "
        "validated and kept (Polyak and Juditsky, 1992). None: no average.",
    )
    keep: Literal["last", "best"] = Field(
        "last", description="Which weights are kept: those after the last step, or those of the best evaluation."
    )
    watch: str | None = Field(
        None,
        description="Metric that decides which weights are best: one of the validation, or `loss`. "
        "None: the objective's main metric.",
    )
    patience: int | None = Field(
        None, ge=1, description="Evaluations in a row that are no better, after which training ends. None: it goes on."
    )

    @model_validator(mode="after")
    def _evaluated(self) -> TrainingParams:
        if self.eval_every == 0 and (self.keep == "best" or self.patience is not None):
            raise ValueError("`keep: best` and `patience` need evaluations: set `eval_every`")
        return self


class WithObjective(StageParams):
    """The field of a stage that chooses its objective; the others take it from the model they are given."""

    objective: ObjectiveField = Field(
        description="What is learned: the name of a file in `tasks/objectives/*/`, or {name: ..., and its options}."
    )

    def types_taken(self, field: str, types: tuple[str, ...]) -> tuple[str, ...]:
        """Data are of a type that the objective reads."""
        return tuple(one for one in types if one in self.objective.data_types) if field == "data" else types


class TeacherParams(StageParams):
    """How a model learns from another one's outputs beside the labels."""

    temperature: float = Field(2.0, gt=0, description="Softens both outputs. 1: as they are.")
    alpha: float = Field(0.7, ge=0, le=1, description="Share of the teacher's outputs in the loss. 0: labels only.")
    hidden: float = Field(
        0.0,
        ge=0,
        description="Weight of the distance of the layers' outputs, each token's scaled to length one (Sun et al., "
        "2019). 0: only what comes out at the end counts.",
    )
    attention: float = Field(
        0.0,
        ge=0,
        description="Weight of the distance of the last layers' attention (Jiao et al., 2020). 0: it does not count.",
    )
