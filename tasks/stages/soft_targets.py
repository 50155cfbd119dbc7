"""soft_targets: a teacher's outputs on the data that students will learn from, made once for all of them.

    softened: {soft_targets: {teacher: teacher, data: texts}}
    student: {distill: {teacher: teacher, soft_targets: softened, data: texts, layers: 3, alpha: 1.0}}

Made of the split that `distill` trains on; labels are not read. Payload:
`tasks/compression/distillation/soft_targets.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from infra.errors import StageError
from tasks.stage import Input, Job, Stage, StageParams


class Params(StageParams):
    """Teacher and data, and how much of its outputs is stored."""

    teacher: Annotated[str, Input("model", trained=True)] = Field(description="The teacher.")
    data: Annotated[str, Input("dataset", "tokens")] = Field(
        description="Examples, with the split (`texts.validation`); default train."
    )
    dtype: Literal["fp32", "fp16"] = Field("fp16", description="Number format of the outputs.")
    top_k: int | None = Field(
        64,
        ge=1,
        description="Of outputs over more classes or tokens than this, only so many are kept, the largest, and the "
        "mass of the rest. None: all, which for each token of a vocabulary is much.",
    )
    temperature: float = Field(
        2.0, gt=0, description="Temperature of that mass; students of outputs that were cut learn at the same one."
    )


def run(job: Job[Params]) -> dict[str, float]:
    import torch

    from tasks.compression.distillation.loss import as_teacher
    from tasks.compression.distillation.soft_targets import Form, write_soft_targets
    from tasks.models.loading import load_model
    from tasks.models.trained_for import trained_for
    from tasks.training.engine.ranks import training_device
    from tasks.training.loop.features import check_data

    params, source, data = job.params, job.input("teacher").path, job.input("data")
    objective = trained_for(source)
    check_data(objective, data)
    features = objective.examples(data, data.split or "train", labelled=False)
    first = features[0]
    if objective.noised(first, 0) is not first:
        raise StageError(
            f"objective {objective.name} draws again what a model reads each time an example comes",
            where=f"stages.{job.name}.teacher",
            hint="There is no one output to keep: let `distill` ask the teacher itself.",
        )
    teacher = as_teacher(load_model(source, objective.auto_class), training_device(job.execution))
    form = Form(
        {"fp32": torch.float32, "fp16": torch.float16}[params.dtype],
        params.top_k if objective.truncatable else None,
        params.temperature,
    )
    write_soft_targets(job.output, teacher, objective, features, form, lambda done: job.progress(done, len(features)))
    return {"examples": float(len(features)), "bytes": float(sum(f.stat().st_size for f in job.output.iterdir()))}


# Exclusive, because a stage of one process gets every core only so.
STAGE = Stage(kind="soft_targets", version=2, makes="soft_targets", params=Params, run=run, warm=True, exclusive=True)
