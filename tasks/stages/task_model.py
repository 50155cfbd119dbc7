"""task_model: the plain model of one task out of a shared one, for every stage that takes a model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tasks.stage import Input, Job, Stage, StageParams


class Params(StageParams):
    """Which model, and which of its tasks."""

    model: Annotated[str, Input("multitask_model")] = Field(description="A model that `multitask` trained.")
    task: str = Field(min_length=1, description="The task, by the name it was trained under.")


def run(job: Job[Params]) -> dict[str, float]:
    from tasks.training.multitask.files import write_task_model

    parameters = write_task_model(job.input("model").path, job.params.task, job.output)
    prefix = f"validation_{job.params.task}/"
    known = job.input("model").manifest.metrics
    validation = {f"validation_{n.removeprefix(prefix)}": value for n, value in known.items() if n.startswith(prefix)}
    return {**validation, "parameters": float(parameters)}


STAGE = Stage(kind="task_model", version=1, makes="model", params=Params, run=run, warm=True)
