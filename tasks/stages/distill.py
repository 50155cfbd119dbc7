"""distill: a shallower student learns from a teacher's outputs and from the labels.

The student is the teacher with fewer layers (an encoder-decoder: in both stacks), started from evenly chosen ones. Its
loss is alpha x T^2 KL(teacher || student at temperature T) + (1 - alpha) x the objective's own (Hinton et al., 2015).
Evidence in `records/`: train.jsonl, validation.jsonl, samples.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from tasks.data.augmentation import Augment
from tasks.stage import Input, Job, Stage
from tasks.training.deepspeed_config import training_faults
from tasks.training.settings import TrainingParams

if TYPE_CHECKING:
    import torch


class Params(TrainingParams):
    """Whom the student learns from, on what, and how."""

    teacher: Annotated[str, Input("model")] = Field(description="The model to learn from.")
    data: Annotated[str, Input("dataset", "tokens")] = Field(description="Examples to learn on.")
    augment: Augment | None = Field(None, description="Changes made to training texts. None: none.")
    layers: int = Field(
        ge=1, description="Layers of the student (encoder-decoder: of each stack); at most the teacher's."
    )
    temperature: float = Field(2.0, gt=0, description="Softens both outputs. 1: as they are.")
    alpha: float = Field(0.7, ge=0, le=1, description="Share of the teacher's outputs in the loss. 0: labels only.")


def run(job: Job[Params]) -> dict[str, float]:
    import torch

    from tasks.compression.distill import student_from
    from tasks.model_card import read_card
    from tasks.training.evidence import finish
    from tasks.training.features import train_and_validation
    from tasks.training.loop import train
    from tasks.training.model_files import load_model, load_tokenizer
    from tasks.training.model_inputs import model_inputs
    from tasks.training.ranks import training_device

    params, source, data = job.params, job.input("teacher").path, job.input("data")
    card = read_card(source)
    objective = card.objective
    tokenizer = load_tokenizer(source)
    features = train_and_validation(objective, data, tokenizer, card.max_length, params.augment, params.seed)
    torch.manual_seed(params.seed)
    teacher = load_model(source, objective.auto_class)
    student = student_from(teacher, params.layers)
    if hasattr(teacher.config, "use_cache"):
        teacher.config.use_cache = False  # with one, packed documents would see each other
    torch.nn.Module.to(teacher.train(False).requires_grad_(False), training_device(job.execution))

    def loss(logits: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        hard: torch.Tensor = objective.loss(logits, batch)[0]
        if params.alpha == 0:
            return hard
        with torch.no_grad():
            teacher_logits = objective.output(teacher(**model_inputs(batch, teacher)))
        soft: torch.Tensor = objective.soft_loss(logits, teacher_logits, batch, params.temperature)
        return params.alpha * soft + (1 - params.alpha) * hard

    result = train(job, student, objective, *features, params, loss_fn=loss)
    return finish(job, result, objective, features, tokenizer, tokenizer_from=source, card=card)


STAGE = Stage(
    kind="distill", version=1, makes="model", params=Params, run=run, warm=True, distributed=True, check=training_faults
)
