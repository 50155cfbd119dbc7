"""qat: a model trained on while it computes with rounded weights, so that quantizing it afterwards costs less.

    aware: {qat: {model: teacher, data: texts, scheme: int4, epochs: 1, learning_rate: 5e-5}}
    onnx:  {export: {model: aware}}
    int4:  {quantize: {model: onnx, scheme: int4}}      # the same scheme and settings, or it learned for nothing

For models that lose too much when they are quantized as they are. What comes out is a plain model in floating point;
its validation is that of the rounded one. How it learns through the rounding:
`tasks/compression/quantization/fake_quantization.py`.
Evidence in `records/`: train.jsonl, validation.jsonl, samples.json.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.compression.healing import Healing
from tasks.compression.quantization.grid_settings import GridParams
from tasks.stage import Input, Job, Stage
from tasks.training.engine.deepspeed_config import training_faults


class Params(GridParams, Healing):
    """Model, data, number format and training settings."""

    model: Annotated[str, Input("model", trained=True)] = Field(description="The model to start from.")
    data: Annotated[str, Input("dataset", "tokens")] = Field(description="Training data.")
    scheme: Literal["dynamic_int8", "static_int8", "int4"] = Field(
        description="The `scheme` of the `quantize` stage that follows. "
        "Convolutions are rounded for `static_int8` only."
    )

    @model_validator(mode="after")
    def _of_one_scheme(self) -> Params:
        if self.scheme != "int4" and self.group_size != 32:
            raise ValueError(f"`group_size` is for `scheme: int4`, not {self.scheme}")
        return self


def run(job: Job[Params]) -> dict[str, float]:
    from tasks.compression.healing import heal
    from tasks.compression.quantization.fake_quantization import fake_quantized
    from tasks.models.card import read_card
    from tasks.models.loading import load_model
    from tasks.models.trained_for import trained_for
    from tasks.training.loop.features import train_and_validation
    from tasks.training.loop.finish import finish

    params, source = job.params, job.input("model").path
    objective = trained_for(source)
    features = train_and_validation(objective, job.input("data"))
    model = load_model(source, objective.auto_class)
    teacher = job.input("teacher").path if params.teacher is not None else None
    with fake_quantized(model, params.scheme, params, where=f"stages.{job.name}"):
        result = heal(job, model, objective, features, params, teacher)
    return finish(job, result, objective, features, card=read_card(source))


STAGE = Stage(
    kind="qat", version=2, makes="model", params=Params, run=run, warm=True, distributed=True, check=training_faults
)
