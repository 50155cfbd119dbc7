"""distill: a smaller student learns from a teacher's outputs, from its insides, and from the labels.

    distill: {teacher: teacher, data: texts, layers: 2}                # the teacher with two of its layers
    distill: {teacher: teacher, data: texts, student: small}           # another model, of any family, by its own stage

A student made by `layers` starts from evenly chosen layers of the teacher (an encoder-decoder: of both stacks). Another
one must have the teacher's vocabulary. What is minimised: `tasks/compression/distill.py`.
Evidence in `records/`: train.jsonl, validation.jsonl, samples.json.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from infra.errors import StageError
from tasks.data.augmentation import Augment
from tasks.stage import Input, Job, Stage
from tasks.training.deepspeed_config import training_faults
from tasks.training.settings import TeacherParams, TrainingParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from tasks.objectives import Objective


class Params(TeacherParams, TrainingParams):
    """Whom the student learns from, on what, and how."""

    teacher: Annotated[str, Input("model")] = Field(description="The model to learn from.")
    data: Annotated[str, Input("dataset", "tokens")] = Field(description="Examples to learn on.")
    augment: Augment | None = Field(None, description="Changes made to training texts. None: none.")
    layers: int | None = Field(
        None,
        ge=1,
        description="Layers of a student cut from the teacher (encoder-decoder: of each stack); at most as many as it "
        "has. None: `student` is named.",
    )
    student: Annotated[str | None, Input("model")] = Field(
        None, description="A model to begin with instead, with the teacher's vocabulary. None: `layers` of the teacher."
    )

    @model_validator(mode="after")
    def _one_student(self) -> Params:
        if (self.layers is None) == (self.student is None):
            raise ValueError("give exactly one of `layers` and `student`")
        if self.r_drop and (self.hidden or self.attention):
            raise ValueError("`r_drop` passes twice through the student, so `hidden` and `attention` do not go with it")
        return self


def run(job: Job[Params]) -> dict[str, float]:
    import torch

    from tasks.compression.distill import Lesson, student_from
    from tasks.evaluation.class_names import same_labels
    from tasks.model_card import read_card
    from tasks.training.evidence import finish
    from tasks.training.features import train_and_validation
    from tasks.training.loop import train
    from tasks.training.model_files import load_model, load_tokenizer
    from tasks.training.ranks import training_device

    params, source, data = job.params, job.input("teacher").path, job.input("data")
    card = read_card(source)
    objective = card.objective
    truth = objective.head(data).get("label2id")
    same_labels(job.input("teacher").stage, card.labels, truth, where=f"stages.{job.name}.data")
    tokenizer = load_tokenizer(source)
    features = train_and_validation(objective, data, tokenizer, card.max_length, params.augment, params.seed)
    torch.manual_seed(params.seed)
    teacher = load_model(source, objective.auto_class)
    student = student_from(teacher, params.layers) if params.layers else _given(job, objective, tokenizer)
    lesson = Lesson(student, teacher, objective, params, training_device(job.execution))
    result = train(job, student, objective, *features, params, loss_fn=lesson, parts=lesson.parts)
    lesson.finished(result.model)
    return finish(job, result, objective, features, tokenizer, tokenizer_from=source, card=card)


def _given(job: Job[Params], objective: Objective, tokenizer: PreTrainedTokenizerFast | None) -> PreTrainedModel:
    """The student that was named, with the teacher's classes. Raises StageError where the two do not go together."""
    from tasks.evaluation.class_names import same_labels
    from tasks.model_card import read_card
    from tasks.training.architecture import check_length
    from tasks.training.model_files import load_model, load_tokenizer, set_pad_token

    folder, where = job.input("student").path, f"stages.{job.name}.student"
    own = load_tokenizer(folder)
    if (own and own.get_vocab()) != (tokenizer and tokenizer.get_vocab()):
        raise StageError(
            "the student has another vocabulary than its teacher",
            where=where,
            hint="A student reads the teacher's tokens: pretrain it with the same tokenizer.",
        )
    labels = read_card(job.input("teacher").path).labels
    same_labels(job.input("student").stage, read_card(folder).labels, labels, where=where)
    student = load_model(folder, objective.auto_class, **objective.head(job.input("data")))
    set_pad_token(student, tokenizer)
    check_length(student, read_card(job.input("teacher").path).max_length, where=where)
    return student


STAGE = Stage(
    kind="distill", version=1, makes="model", params=Params, run=run, warm=True, distributed=True, check=training_faults
)
