"""What stages that train a given model further have in common: which of its weights learn, and with which head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tasks.stage import Input
from tasks.training.settings import TrainingParams
from tasks.training.tuning.freezing import Freeze

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.objective import Objective
    from tasks.training.engine.parameter_groups import Tuning


class FineTuningParams(TrainingParams):
    """The model a stage starts from, and what of it learns."""

    model: Annotated[str, Input("model")] = Field(description="The model to start from.")
    new_head: bool = Field(False, description="Begin with a new head, also where the model has one.")
    freeze: Freeze | None = Field(None, description="Weights that stay as they are. None: all learn.")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="A layer's learning rate is so many times that of the layer above it."
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="Every dropout rate of the model. None: as it was pretrained with."
    )
    max_length: int | None = Field(
        None, ge=1, description="Tokens kept of each example. None: as many as the model was trained for."
    )


def open_model(
    source: Path,
    objective: Objective,
    params: FineTuningParams,
    *,
    head: Mapping[str, Any],
    stage: str,
    pretrained: bool = True,
) -> PreTrainedModel:
    """The model in `source` with the head of `objective`, a new one where there is none or `new_head` asks for it.

    objective: bound to what the model reads with. The same seed draws the same head. Raises StageError, naming the
    field of `stage`, when the model cannot read what its processor makes, or when weights do not fit.
    """
    import torch

    from tasks.models.dropout import dropout_fields
    from tasks.models.loading import load_model

    torch.manual_seed(params.seed)
    model = load_model(
        source,
        objective.auto_class,
        pretrained=pretrained,
        new_head=params.new_head,
        **head,
        **dropout_fields(source, params.dropout),
    )
    if objective.processor is not None:
        objective.processor.adapt(model)
        objective.processor.require_fit(model, where=f"stages.{stage}.model", limit_where=f"stages.{stage}.max_length")
    return model


def freeze_and_decay(model: PreTrainedModel, params: FineTuningParams) -> tuple[frozenset[str], Tuning]:
    """Stop the gradients of what `freeze` names; the names, and how fast all others learn.

    Weights that thaw in time keep their gradients: the optimizer must know them from the first step.
    """
    from tasks.training.engine.parameter_groups import Tuning
    from tasks.training.tuning.freezing import frozen_names

    frozen = frozenset(frozen_names(model, params.freeze)) if params.freeze else frozenset()
    thaw_over = params.freeze.thaw_over if params.freeze else 0.0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen or thaw_over > 0)
    return frozen, Tuning(params.layer_decay, thaw_over, frozen if thaw_over else frozenset())
