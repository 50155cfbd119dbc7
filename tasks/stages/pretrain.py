"""pretrain: a model from random weights.

The architecture is any Hugging Face model type with its own config fields; what follows from the data's processor is
set by it (vocabulary and special tokens, size and channels of pictures). Evidence in `records/`: train.jsonl (every
step), validation.jsonl, baselines.json (what counting alone achieves on the same data), samples.json.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.stage import Input, Job, Stage
from tasks.training.engine.deepspeed_config import training_faults
from tasks.training.settings import TrainingParams, WithObjective


class ModelParams(BaseModel):
    """The architecture. Fields other than `type` are those of the type's Hugging Face config."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str = Field(description="Hugging Face model type, e.g. `llama` or `gpt2`.")

    def fields(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Params(WithObjective, TrainingParams):
    """Data, architecture and training settings."""

    data: Annotated[str, Input("tokens", "dataset")] = Field(
        description="What to learn from: for models of text a `pack` stage, else a dataset."
    )
    model: ModelParams = Field(description="The architecture: `type` and any field of its Hugging Face config.")

    @model_validator(mode="after")
    def _can_be_new(self) -> Params:
        if not set(self.objective.new_model_data) & set(self.objective.data_types):
            raise ValueError(
                f"no new model learns {self.objective.name}, whose data do not say how it would read: pretrain with "
                "an objective of packed tokens, and `finetune` after it"
            )
        return self

    def types_taken(self, field: str, types: tuple[str, ...]) -> tuple[str, ...]:
        known = super().types_taken(field, types)
        return tuple(one for one in known if one in self.objective.new_model_data) if field == "data" else known


def run(job: Job[Params]) -> dict[str, float]:
    import torch

    from tasks.models.card import ModelCard
    from tasks.models.creation import new_model
    from tasks.training.loop.features import check_data, train_and_validation
    from tasks.training.loop.finish import finish
    from tasks.training.loop.train import train

    params, data = job.params, job.input("data")
    objective, where = params.objective, f"stages.{job.name}.model"
    check_data(objective, data)
    processor = objective.new_processor(data)
    head = objective.head(data)
    torch.manual_seed(params.seed)
    model = new_model(objective.auto_class, params.model.type, params.model.fields() | head, processor, where=where)
    processor.require_fit(model, where=where)
    card = ModelCard.of(objective, processor.limit, head)
    objective = card.objective.bound(processor, config=model.config)
    features = train_and_validation(objective, data)
    result = train(job, model, objective, *features, params)
    return finish(job, result, objective, features, card=card, baselines=True)


STAGE = Stage(
    kind="pretrain",
    version=1,
    makes="model",
    params=Params,
    run=run,
    warm=True,
    distributed=True,
    check=training_faults,
)
