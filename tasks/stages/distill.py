"""distill: a smaller student learns from a teacher's outputs, from its insides, and from the labels.

    distill: {teacher: teacher, data: texts, layers: 2}                # the teacher with two of its layers
    distill: {teacher: teacher, data: texts, student: small}           # another model, of any family, by its own stage

    distill: {teacher: teacher, soft_targets: softened, data: texts, layers: 2}     # outputs that are there already
    distill: {teacher: teacher, data: more, unlabelled: true, alpha: 1, layers: 2}  # texts that nobody labelled
    distill: {teacher: theirs, data: more, alpha: 0, hidden: 1, layers: 2}          # an encoder without a head

A student made by `layers` starts from evenly chosen layers of the teacher (an encoder-decoder: of both stacks). Another
one must have the teacher's vocabulary. What is minimised: `tasks/compression/distillation/loss.py`. The student of a
pretrained encoder that was trained for nothing yet (general distillation; Jiao et al., 2020) is such an encoder itself.
Evidence in `records/`: train.jsonl, validation.jsonl, samples.json.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from infra.errors import StageError
from tasks.objective import AugmentField
from tasks.stage import Input, Job, Stage
from tasks.training.engine.deepspeed_config import training_faults
from tasks.training.settings import TeacherParams, TrainingParams

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from tasks.compression.distillation.soft_targets import SoftTargets
    from tasks.objective import Objective


HEAD = ("num_labels", "id2label", "label2id", "problem_type")
"""Config fields that make another student's head the teacher's."""


class Params(TeacherParams, TrainingParams):
    """Teacher, data and training settings of a student."""

    teacher: Annotated[str, Input("model")] = Field(description="The model to learn from.")
    data: Annotated[str, Input("dataset", "tokens")] = Field(description="Training data.")
    soft_targets: Annotated[str | None, Input("soft_targets")] = Field(
        None, description="The teacher's outputs on `data`, made before. None: it is asked in every step."
    )
    unlabelled: bool = Field(
        False,
        description="The data have no labels, or none that count: only the teacher is learned from, nothing validates.",
    )
    augment: AugmentField | None = Field(
        None, description="Changes made to training examples: settings of the objective's domain. None: none."
    )
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

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> Params:
        if self.unlabelled and not (self.alpha == 1 or (self.alpha == 0 and (self.hidden or self.attention))):
            raise ValueError(
                "without labels the teacher is all there is: set `alpha: 1`, or `alpha: 0` with `hidden` or `attention`"
            )
        if self.soft_targets is None:
            return self
        if self.alpha == 0:
            raise ValueError("`alpha: 0` learns from labels alone: leave out `soft_targets`")
        for name in ("hidden", "attention", "augment"):
            if getattr(self, name):
                raise ValueError(f"`soft_targets` hold only outputs, on the data as they are: leave out `{name}`")
        return self


def run(job: Job[Params]) -> dict[str, float]:
    import torch

    from tasks.compression.distillation.loss import DistillationLoss
    from tasks.compression.distillation.student import student_from
    from tasks.models.card import read_card
    from tasks.models.loading import load_model
    from tasks.models.trained_for import trained_for
    from tasks.training.engine.ranks import training_device
    from tasks.training.loop.features import train_and_validation
    from tasks.training.loop.finish import finish
    from tasks.training.loop.train import train

    params, source, data = job.params, job.input("teacher").path, job.input("data")
    card = read_card(source)
    headless = card.settings is None
    if headless and (params.alpha or not (params.hidden or params.attention)):
        raise StageError(
            "the teacher was trained for no objective, so that only its insides can be learned",
            where=f"stages.{job.name}.teacher",
            hint="Set `alpha: 0` and `hidden` or `attention`, or put a `finetune` stage before.",
        )
    objective = _general(job, source) if headless else trained_for(source)
    unlabelled = headless or params.unlabelled
    features = train_and_validation(objective, data, params.augment, params.seed, unlabelled=unlabelled)
    torch.manual_seed(params.seed)
    model = load_model(source, objective.auto_class)
    student = student_from(model, params.layers) if params.layers else _given(job, objective)
    teacher = _stored(job, len(features.train)) if params.soft_targets else model
    loss = DistillationLoss(student, teacher, objective, params, training_device(job.execution), unlabelled=unlabelled)
    result = train(job, student, objective, *features, params, loss_fn=loss, parts=loss.parts)
    loss.finished(result.model)
    return finish(job, result, objective, features, card=card)


def _general(job: Job[Params], source: Path) -> Objective:
    """The objective of a teacher without a head: of the domain whose examples it reads."""
    from tasks.models.trained_for import bound_to
    from tasks.objective import headless_objective

    return bound_to(headless_objective(source), source)


def _given(job: Job[Params], objective: Objective) -> PreTrainedModel:
    """The student that was named, with the teacher's classes. Raises StageError where the two do not go together."""
    from transformers import AutoConfig

    from tasks.metrics.class_names import same_labels
    from tasks.models.card import read_card
    from tasks.models.loading import load_model

    folder, where = job.input("student").path, f"stages.{job.name}.student"
    own = objective.load_processor(folder, read_card(folder).max_length)
    if difference := objective.processor.difference(own):
        raise StageError(
            f"the student has {difference} than its teacher",
            where=where,
            hint="A student reads what its teacher reads: pretrain it with the same tokenizer, or picture size.",
        )
    labels = read_card(job.input("teacher").path).labels
    same_labels(repr(job.input("student").stage), read_card(folder).labels, labels, where=where)
    config = AutoConfig.from_pretrained(job.input("teacher").path)
    head: dict[str, Any] = {name: getattr(config, name, None) for name in HEAD}
    student = load_model(folder, objective.auto_class, **head)
    objective.processor.adapt(student)
    objective.processor.require_fit(student, where=where)
    return student


def _stored(job: Job[Params], examples: int) -> SoftTargets:
    """Raises StageError where they are another teacher's, of other data, or cut at another temperature."""
    from tasks.compression.distillation.soft_targets import SoftTargets

    artifact, where = job.input("soft_targets"), f"stages.{job.name}.soft_targets"
    made_of = {e["field"]: (e["digest"], e["split"] or "train") for e in artifact.manifest.identity["inputs"]}
    for field in ("teacher", "data"):
        given = job.input(field)
        if made_of[field] != (given.manifest.digest, given.split or "train"):
            raise StageError(
                f"{artifact.stage!r} was made of another {field} than {given.stage!r}",
                where=where,
                hint=f"Give that `soft_targets` stage the `{field}` that is named here.",
            )
    found = SoftTargets(artifact.path)
    assert len(found) == examples, "equal teacher and data give equal examples"
    if found.temperature not in (None, job.params.temperature):
        raise StageError(
            f"{artifact.stage!r} was cut at temperature {found.temperature:g}, and here it is "
            f"{job.params.temperature:g}",
            where=where,
            hint="Set both alike, or `top_k: null` there, which keeps all.",
        )
    return found


STAGE = Stage(
    kind="distill", version=2, makes="model", params=Params, run=run, warm=True, distributed=True, check=training_faults
)
