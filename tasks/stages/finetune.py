"""finetune: a pretrained backbone, given the head its objective needs, trained on labelled (or further) data.

What of it learns is said by `freeze` (patterns, or all but the last layers, which can thaw in time), `layer_decay`
(lower layers more slowly) and `lora` (low-rank updates, merged into the weights at the end); all can be combined.
`prompt` stands alone: vectors before every text learn, and the head, and nothing else.
`init: random` trains the same architecture from random weights on the same data, which shows what pretraining gave.
Evidence in `records/`: train.jsonl, validation.jsonl, baselines.json, samples.json.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from tasks.objective import AugmentField
from tasks.stage import Input, Job, Stage
from tasks.training.engine.deepspeed_config import training_faults
from tasks.training.settings import WithObjective
from tasks.training.tuning.fine_tuning import FineTuningParams, freeze_and_decay, open_model
from tasks.training.tuning.lora import Lora
from tasks.training.tuning.prompt_settings import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.objective import Feature, Objective


class Params(WithObjective, FineTuningParams):
    """Model, data and training settings."""

    data: Annotated[str, Input("dataset", "tokens")] = Field(description="The data to learn from.")
    init: Literal["pretrained", "random"] = Field(
        "pretrained", description="Where the backbone's weights come from. `random`: only the architecture is kept."
    )
    lora: Lora | None = Field(
        None, description="Low-rank updates beside frozen weights, merged at the end. None: the weights learn."
    )
    prompt: Prompt | None = Field(
        None, description="Vectors before every text, which learn while the network does not. None: none."
    )
    augment: AugmentField | None = Field(
        None, description="Changes made to training examples: settings of the objective's domain. None: none."
    )

    @model_validator(mode="after")
    def _augmentation_fits(self) -> Params:
        domain = self.objective.augmentation
        if self.augment is not None and domain is None:
            raise ValueError(f"objective {self.objective.name} does not support `augment`: leave it out")
        if self.augment is not None and self.augment.domain != domain:
            raise ValueError(f"`augment` is for {self.augment.domain}, and {self.objective.name} reads {domain}")
        return self

    @model_validator(mode="after")
    def _prompt_alone(self) -> Params:
        if self.prompt is None:
            return self
        others = {"freeze": self.freeze, "lora": self.lora, "layer_decay": self.layer_decay != 1.0}
        if beside := [name for name, given in others.items() if given]:
            raise ValueError(
                f"`prompt` leaves every layer as it is, so `{beside[0]}` has nothing to act on: choose one of the two"
            )
        if self.init == "random":
            raise ValueError("`prompt` leaves the network as it is, and `init: random` makes one that knows nothing")
        return self


def run(job: Job[Params]) -> dict[str, float]:
    from tasks.models.card import ModelCard
    from tasks.models.loading import head_parameters
    from tasks.models.trained_for import bound_to
    from tasks.training.loop.features import train_and_validation
    from tasks.training.loop.finish import finish
    from tasks.training.loop.train import train
    from tasks.training.tuning import prompt_tuning
    from tasks.training.tuning.lora import insert

    params, source, data = job.params, job.input("model").path, job.input("data")
    objective = bound_to(params.objective, source, limit=params.max_length, data=data)
    plain = ships = objective.processor
    if params.prompt is not None:
        ships = prompt_tuning.prompted(plain, params.prompt.tokens, job.scratch / "tokenizer", stage=job.name)
    features = train_and_validation(objective.bound(ships), data, params.augment, params.seed)
    head = objective.head(data)
    model = open_model(source, objective, params, head=head, stage=job.name, pretrained=params.init == "pretrained")
    frozen, tuning = freeze_and_decay(model, params)
    if params.lora is not None:
        insert(model, params.lora, head=head_parameters(model) - frozen)
    rebuild = partial(_with_updates, params.lora, model) if params.lora else None
    if params.prompt is not None:
        prompt_tuning.insert(
            model, params.prompt, plain.tokenizer, head=head_parameters(model), first=len(plain.tokenizer)
        )
        rebuild = partial(prompt_tuning.empty_like, model)
    card = ModelCard.of(objective, plain.limit, head)
    objective = card.objective.bound(ships, config=model.config)
    result = train(job, model, objective, *features, params, tuning=tuning, rebuild=rebuild)
    if params.lora is not None or params.prompt is not None:
        result.model = _merged(result.model, objective, features.train[0], lora=params.lora is not None)
    # What people read of a sample are its words, without the prompt.
    return finish(job, result, objective.bound(plain), features, card=card, baselines=True, processor=ships)


def _with_updates(lora: Lora, model: PreTrainedModel) -> PreTrainedModel:
    """An untrained model of the same form, which takes the weights that ranks hold in parts."""
    from tasks.models.loading import head_parameters
    from tasks.training.tuning.lora import insert

    made = type(model)(model.config)
    return insert(made, lora, head=head_parameters(made))


def _merged(model: PreTrainedModel, objective: Objective, example: Feature, *, lora: bool) -> PreTrainedModel:
    """The model without its adapters or with its prompt among its words, which is checked to say the same."""
    import torch

    from tasks.models.inputs import model_inputs
    from tasks.training.tuning import lora as low_rank
    from tasks.training.tuning import prompt_tuning

    inputs = model_inputs(objective.collate([objective.noised(example, 0)]), model)
    with torch.no_grad():
        before = objective.read(model(**inputs))
        merged = low_rank.merge(model) if lora else prompt_tuning.merge(model)
        after = objective.read(merged(**inputs))
    for name, value in before.items():
        low_rank.largest_change(value, after[name])
    return merged


STAGE = Stage(
    kind="finetune",
    version=2,
    makes="model",
    params=Params,
    run=run,
    warm=True,
    distributed=True,
    check=training_faults,
)
