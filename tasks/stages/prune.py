"""prune: a model with fewer feed-forward neurons, chosen on data, and healed by a short training.

Evidence in `records/`: pruning.json (parameters before and after, validation loss before, after and healed),
train.jsonl, validation.jsonl, samples.json.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tasks.stage import Input, Job, Stage, StageParams
from tasks.training.deepspeed_config import training_faults
from tasks.training.settings import TrainingParams


class Params(StageParams):
    """What is pruned, how far, and how it is healed."""

    model: Annotated[str, Input("model")] = Field(description="The model to prune.")
    data: Annotated[str, Input("dataset", "tokens")] = Field(description="Examples that show which neurons matter.")
    method: Literal["ffn_width"] = Field(
        "ffn_width", description="What is removed. `ffn_width`: feed-forward neurons, as many in every layer."
    )
    keep: float = Field(0.7, gt=0, lt=1, description="Share of the neurons that stay, rounded to a multiple of 8.")
    samples: int = Field(256, ge=1, description="Training examples that the importance is measured on.")
    heal: TrainingParams | None = Field(None, description="Training after the cut. None: none.")


def run(job: Job[Params]) -> dict[str, float]:
    from tasks.compression.ffn_pruning import neuron_importance, pruned
    from tasks.model_card import read_card
    from tasks.objectives import SpecialIds
    from tasks.training.evidence import finish
    from tasks.training.features import train_and_validation
    from tasks.training.loop import train
    from tasks.training.model_files import count_parameters, load_model, load_tokenizer
    from tasks.training.result import TrainResult

    params, source, data = job.params, job.input("model").path, job.input("data")
    card = read_card(source)
    objective = card.objective
    tokenizer = load_tokenizer(source)
    features = train_and_validation(objective, data, tokenizer, card.max_length)
    model = load_model(source, objective.auto_class)
    before = count_parameters(model)
    special = SpecialIds.of(model.config)
    # Evenly spread over the split, because neighbours in a file look alike.
    count = min(params.samples, len(features.train))
    places = [i * len(features.train) // count for i in range(count)]
    chosen = [objective.noised(features.train[place], place) for place in places]
    batches = (objective.collate(chosen[i : i + 16], special) for i in range(0, count, 16))
    importance = neuron_importance(model, batches, objective)
    smaller = pruned(model, importance, params.keep)
    after = count_parameters(smaller)
    assert after < before, "pruning removed nothing"
    result = (
        train(job, smaller, objective, *features, params.heal)
        if params.heal
        else TrainResult.untrained(smaller, objective, features.validation)
    )
    metrics = finish(job, result, objective, features, tokenizer, tokenizer_from=source, card=card)
    return {**metrics, "parameters_before": float(before), "parameters_ratio": after / before}


STAGE = Stage(
    kind="prune", version=1, makes="model", params=Params, run=run, warm=True, distributed=True, check=training_faults
)
