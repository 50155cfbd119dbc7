"""distill: a shallower student learns from a teacher's outputs and from the labels.

The student is the teacher with fewer layers (an encoder-decoder: in both stacks), started from evenly chosen ones. Its
loss is alpha x T^2 KL(teacher || student at temperature T) + (1 - alpha) x the objective's own (Hinton et al., 2015).
Evidence in `records/`: train.jsonl, validation.jsonl, samples.json.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tasks.data.augmentation import Augment
from tasks.stage import Input, Job, Stage
from tasks.training.deepspeed_config import training_faults
from tasks.training.settings import TeacherParams, TrainingParams


class Params(TeacherParams, TrainingParams):
    """Whom the student learns from, on what, and how."""

    teacher: Annotated[str, Input("model")] = Field(description="The model to learn from.")
    data: Annotated[str, Input("dataset", "tokens")] = Field(description="Examples to learn on.")
    augment: Augment | None = Field(None, description="Changes made to training texts. None: none.")
    layers: int = Field(
        ge=1, description="Layers of the student (encoder-decoder: of each stack); at most the teacher's."
    )


def run(job: Job[Params]) -> dict[str, float]:
    import torch

    from tasks.compression.distill import learn_from, student_from
    from tasks.model_card import read_card
    from tasks.training.evidence import finish
    from tasks.training.features import train_and_validation
    from tasks.training.loop import train
    from tasks.training.model_files import load_model, load_tokenizer
    from tasks.training.ranks import training_device

    params, source, data = job.params, job.input("teacher").path, job.input("data")
    card = read_card(source)
    objective = card.objective
    tokenizer = load_tokenizer(source)
    features = train_and_validation(objective, data, tokenizer, card.max_length, params.augment, params.seed)
    torch.manual_seed(params.seed)
    teacher = load_model(source, objective.auto_class)
    student = student_from(teacher, params.layers)
    loss_fn = learn_from(teacher, objective, params, training_device(job.execution))
    result = train(job, student, objective, *features, params, loss_fn=loss_fn)
    return finish(job, result, objective, features, tokenizer, tokenizer_from=source, card=card)


STAGE = Stage(
    kind="distill", version=1, makes="model", params=Params, run=run, warm=True, distributed=True, check=training_faults
)
