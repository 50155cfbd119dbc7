"""pretrain: a model from random weights, trained on packed tokens.

The architecture is any Hugging Face model type with its own config fields; vocabulary and special tokens come from the
tokenizer the tokens were made with. Evidence in `records/`: train.jsonl (every step), validation.jsonl, baselines.json
(what counting tokens alone achieves on the same data), samples.json.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

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

    data: Annotated[str, Input("tokens")] = Field(description="A `pack` stage: rows of token ids.")
    model: ModelParams = Field(description="The architecture: `type` and any field of its Hugging Face config.")


def run(job: Job[Params]) -> dict[str, float]:
    import torch

    from tasks.models.card import ModelCard
    from tasks.models.creation import new_model
    from tasks.processors.tokenizer import check_length, check_vocabulary, load_tokenizer
    from tasks.training.loop.features import train_and_validation
    from tasks.training.loop.finish import finish
    from tasks.training.loop.train import train

    params, data = job.params, job.input("data")
    objective = params.objective
    tokenizer_files = data.path / "tokenizer"
    tokenizer = load_tokenizer(tokenizer_files)
    head = objective.head(data)
    torch.manual_seed(params.seed)
    model = new_model(
        objective.auto_class,
        params.model.type,
        params.model.fields() | head,
        tokenizer,
        where=f"stages.{job.name}.model",
    )
    max_length = int(json.loads((data.path / "tokens.json").read_text(encoding="utf-8"))["context"])
    check_vocabulary(model, tokenizer, where=f"stages.{job.name}.model")
    check_length(model, max_length, where=f"stages.{job.name}.model")
    features = train_and_validation(objective, data, tokenizer, max_length)
    card = ModelCard.of(objective, max_length, head)
    objective = card.objective
    result = train(job, model, objective, *features, params)
    return finish(
        job, result, objective, features, tokenizer, tokenizer_from=tokenizer_files, card=card, baselines=True
    )


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
