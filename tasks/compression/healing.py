"""The training after a model was cut, or while its weights are rounded: by the labels, or by them and a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tasks.stage import Input, Job
from tasks.training.settings import TeacherParams, TrainingParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.objective import Objective
    from tasks.training.engine.parameter_groups import Tuning
    from tasks.training.loop.features import Features
    from tasks.training.loop.result import TrainResult
    from tasks.training.loop.train import AfterStep


class Healing(TeacherParams, TrainingParams):
    """Length, learning rate and teacher of the training after a cut."""

    teacher: Annotated[str | None, Input("model")] = Field(
        None, description="The model whose outputs it learns from, such as the one it was made of. None: labels only."
    )


def heal(
    job: Job[Any],
    model: PreTrainedModel,
    objective: Objective,
    features: Features,
    params: Healing,
    teacher: Path | None,
    *,
    tuning: Tuning | None = None,
    after_step: AfterStep | None = None,
) -> TrainResult:
    """Train `model` on; teacher: the folder of `params.teacher`. The rest: `tasks/training/loop/train.py`."""
    from tasks.compression.distillation.loss import DistillationLoss
    from tasks.models.loading import load_model
    from tasks.training.engine.ranks import training_device
    from tasks.training.loop.train import train

    ways: Any = {"tuning": tuning, "after_step": after_step}
    if teacher is None:
        return train(job, model, objective, *features, params, **ways)
    loss = DistillationLoss(
        model, load_model(teacher, objective.auto_class), objective, params, training_device(job.execution)
    )
    result = train(job, model, objective, *features, params, loss_fn=loss, parts=loss.parts, **ways)
    loss.finished(result.model)
    return result
