"""prune: a model with fewer neurons or fewer weights, chosen on data, and healed by a short training.

`ffn_width`, `heads`, `layers` and `channels` take whole parts out: the model is smaller and faster in every runtime.
`magnitude`, `wanda` and `sparsegpt` set single weights to zero, in every layer alike or n of every m (`pattern`), and
healing keeps them zero: the file stays as large, and nothing runs faster unless a runtime makes use of zeros. With a
`schedule` they go little by little while the model heals; `movement` looks at that training, and always has one.
Evidence in `records/`: train.jsonl, validation.jsonl, samples.json.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, cast

from pydantic import Field, model_validator

from infra.execution import Execution
from tasks.compression.healing import Healing
from tasks.compression.pruning.schedule import PruningSchedule
from tasks.stage import Fault, Input, Job, Stage, StageParams
from tasks.training.engine.deepspeed_config import training_faults

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from tasks.compression.pruning.gradual import GradualMethod
    from tasks.compression.pruning.weights import Method, Sparsity
    from tasks.objective import Objective

AT_ONCE = ("magnitude", "wanda", "sparsegpt")
GRADUAL = ("magnitude", "movement")
SINGLE_WEIGHTS = {*AT_ONCE, *GRADUAL}


class Params(StageParams):
    """Model, method and share to prune, and the training after it."""

    model: Annotated[str, Input("model", trained=True)] = Field(description="The model to prune.")
    data: Annotated[str, Input("dataset", "tokens")] = Field(description="Examples that show what matters.")
    method: Literal["ffn_width", "heads", "layers", "channels", "magnitude", "wanda", "sparsegpt", "movement"] = Field(
        "ffn_width",
        description="What is removed. `ffn_width`: feed-forward neurons, as many in every layer; `heads`: attention "
        "heads, the same; `layers`: whole layers; `channels`: those of a convolutional net, equally many in a "
        "stage. The others: single weights of linear layers and convolutions; the smallest, those of the smallest "
        "|weight| x |input| in their row (Sun et al., 2023), those that the rest can best make up for (Frantar and "
        "Alistarh, 2023), or those that the healing moves towards zero (Sanh et al., 2020).",
    )
    keep: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of the neurons or channels (in steps of 8), heads, layers or weights that stay. None: 0.7, "
        "or as `pattern` says.",
    )
    pattern: str | None = Field(
        None,
        pattern=r"^[1-9]\d*:[1-9]\d*$",
        description="`2:4`: two of every four weights side by side stay, instead of a share. None: `keep` decides.",
    )
    scope: Literal["layer", "model"] = Field(
        "layer",
        description="What weights are compared with, for `magnitude` and `movement`: those of their layer, or of all.",
    )
    samples: int = Field(256, ge=1, description="Training examples that the importance is measured on.")
    heal: Healing | None = Field(None, description="Training after the cut. None: none.")
    schedule: PruningSchedule | None = Field(
        None, description="How weights go during `heal`, for `magnitude` and `movement`. None: at once, before it."
    )

    @model_validator(mode="after")
    def _together(self) -> Params:
        gradual = " or ".join(GRADUAL)
        if self.scope == "model" and (self.method not in GRADUAL or self.pattern):
            raise ValueError(f"`scope: model` is for `method: {gradual}`, without `pattern`")
        if self.pattern and self.method not in AT_ONCE:
            raise ValueError(f"`pattern` is for single weights that go at once: choose {', '.join(AT_ONCE)}")
        if self.pattern and self.keep is not None:
            raise ValueError("`pattern` says how many weights stay: leave out `keep`")
        if self.share >= 1:
            raise ValueError(f"`pattern: {self.pattern}` removes nothing: the first number is what stays of the second")
        if self.method == "movement" and not (self.heal and self.schedule):
            raise ValueError("`movement` removes weights that `heal` moves towards zero: give `heal` and `schedule`")
        if self.heal and self.heal.freeze_batch_norm:
            raise ValueError(
                "`freeze_batch_norm` keeps the statistics of the whole model, and what is left gives other values: "
                "leave it out of `heal`"
            )
        if self.schedule is None:
            return self
        if self.method not in GRADUAL or self.pattern:
            raise ValueError(f"`schedule` is for `method: {gradual}`, without `pattern`: the others prune at once")
        if self.heal is None:
            raise ValueError("`schedule` removes weights while the model heals: give `heal`")
        if self.heal.keep == "best" or self.heal.patience is not None:
            raise ValueError("`schedule` is done late in `heal`: leave out its `keep: best` and `patience`")
        return self

    @property
    def share(self) -> float:
        """How much stays."""
        if self.pattern is None:
            return 0.7 if self.keep is None else self.keep
        n, m = map(int, self.pattern.split(":"))
        return n / m


def check(params: Params, execution: Execution) -> list[Fault]:
    """Beside what every training is checked for: Muon would fill removed weights again."""
    faults = training_faults(params, execution)
    if params.heal and params.method in SINGLE_WEIGHTS and params.heal.optimizer.name == "muon":
        message = "muon mixes the entries of a matrix, and removed weights would come back; use adamw or lion"
        faults.append(Fault(("heal", "optimizer", "name"), message))
    return faults


def run(job: Job[Params]) -> dict[str, float]:
    from tasks.compression.healing import heal
    from tasks.compression.pruning.calibration import calibration_batches
    from tasks.compression.pruning.gradual import GradualPruning
    from tasks.compression.pruning.weights import hold_zeros, prune_weights, release_zeros, sparsity_of
    from tasks.models.card import read_card
    from tasks.models.loading import count_parameters, load_model
    from tasks.models.trained_for import trained_for
    from tasks.training.loop.features import train_and_validation
    from tasks.training.loop.finish import finish
    from tasks.training.loop.result import TrainResult

    params, source, data = job.params, job.input("model").path, job.input("data")
    objective = trained_for(source)
    features = train_and_validation(objective, data)
    model = load_model(source, objective.auto_class)
    before = count_parameters(model)
    batches = calibration_batches(objective, features.train, params.samples)
    masks: dict[str, torch.Tensor] = {}
    gradual: GradualPruning | None = None
    whole = params.scope == "model"
    if params.method not in SINGLE_WEIGHTS:
        model = _smaller(params, model, batches, objective)
        assert count_parameters(model) < before, "pruning removed nothing"
    elif params.schedule:
        method = cast("GradualMethod", params.method)
        gradual = GradualPruning(model, method, params.schedule, params.share, whole_model=whole)
    else:
        masks = prune_weights(model, batches, cast("Method", params.method), _sparsity(params), whole_model=whole)
    if params.heal is None:
        result = TrainResult.untrained(model, objective, features.validation)
    else:
        hold_zeros(model, masks)
        teacher = job.input("heal.teacher").path if params.heal.teacher is not None else None
        result = heal(
            job,
            model,
            objective,
            features,
            params.heal,
            teacher,
            tuning=gradual.tuning if gradual else None,
            after_step=gradual,
        )
        masks = release_zeros(model)
    metrics = finish(job, result, objective, features, card=read_card(source))
    metrics |= {"parameters_before": float(before), "parameters_ratio": count_parameters(result.model) / before}
    # The trained model is whole on rank 0 only.
    return metrics | ({"sparsity": sparsity_of(result.model, masks)} if masks and not job.rank else {})


def _smaller(
    params: Params, model: PreTrainedModel, batches: list[dict[str, torch.Tensor]], objective: Objective
) -> PreTrainedModel:
    """The model without the parts that `method` names."""
    from tasks.compression.pruning.channels import without_channels
    from tasks.compression.pruning.ffn_width import neuron_importance, pruned
    from tasks.compression.pruning.heads import head_importance, without_heads
    from tasks.compression.pruning.layers import layer_importance, without_layers

    if params.method == "heads":
        return without_heads(model, head_importance(model, batches, objective), params.share)
    if params.method == "channels":
        return without_channels(model, batches, objective, params.share)
    if params.method == "layers":
        return without_layers(model, layer_importance(model, batches, objective), params.share)
    return pruned(model, neuron_importance(model, batches, objective), params.share)


def _sparsity(params: Params) -> Sparsity:
    from tasks.compression.pruning.weights import Sparsity

    n, m = map(int, (params.pattern or "0:0").split(":"))
    return Sparsity(params.share, n, m)


STAGE = Stage(kind="prune", version=2, makes="model", params=Params, run=run, warm=True, distributed=True, check=check)
