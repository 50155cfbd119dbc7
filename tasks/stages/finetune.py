"""finetune: a pretrained backbone, given the head its objective needs, trained on labelled (or further) data.

`init: random` trains the same architecture from random weights on the same data, which shows what pretraining gave.
The model that ships is the one after the last step. Evidence in `records/`: train.jsonl, validation.jsonl,
baselines.json, samples.json.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tasks.data.augmentation import Augment
from tasks.stage import Input, Job, Stage
from tasks.training.deepspeed_config import training_faults
from tasks.training.settings import TrainingParams, WithObjective


class Params(WithObjective, TrainingParams):
    """What is trained further, on what, and how."""

    model: Annotated[str, Input("model")] = Field(description="The model to start from.")
    data: Annotated[str, Input("dataset", "tokens")] = Field(description="What to learn from.")
    init: Literal["pretrained", "random"] = Field(
        "pretrained", description="Where the backbone's weights come from. `random`: only the architecture is kept."
    )
    augment: Augment | None = Field(None, description="Changes made to training texts. None: none.")
    max_length: int | None = Field(
        None, ge=1, description="Tokens kept of each example. None: as many as the model was trained for."
    )


def run(job: Job[Params]) -> dict[str, float]:
    import torch

    from tasks.model_card import ModelCard, read_card
    from tasks.training.evidence import finish
    from tasks.training.features import train_and_validation
    from tasks.training.loop import train
    from tasks.training.model_files import load_model, load_tokenizer

    params, source, data = job.params, job.input("model").path, job.input("data")
    objective = params.objective
    max_length = params.max_length or read_card(source).max_length
    tokenizer = load_tokenizer(source)
    features = train_and_validation(objective, data, tokenizer, max_length, params.augment, params.seed)
    head = objective.head(data)
    torch.manual_seed(params.seed)
    model = load_model(source, objective.auto_class, pretrained=params.init == "pretrained", **head)
    card = ModelCard.of(objective, max_length, head)
    objective = card.objective
    result = train(job, model, objective, *features, params)
    return finish(job, result, objective, features, tokenizer, tokenizer_from=source, card=card, baselines=True)


STAGE = Stage(
    kind="finetune",
    version=1,
    makes="model",
    params=Params,
    run=run,
    warm=True,
    distributed=True,
    check=training_faults,
)
