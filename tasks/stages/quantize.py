"""quantize: an ONNX model with its weights in eight bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from infra.errors import StageError
from tasks.stage import Input, Job, Stage, StageParams


class Params(StageParams):
    """What is quantized and how."""

    model: Annotated[str, Input("onnx")] = Field(description="Exported model to quantize.")
    scheme: Literal["dynamic_int8"] = Field(
        "dynamic_int8",
        description="`dynamic_int8`: weights int8, activations scaled to uint8 as they come; no data needed.",
    )
    per_channel: bool = Field(False, description="A scale for each output channel instead of one a tensor.")
    reduce_range: bool = Field(
        False, description="Seven-bit weights, for CPUs without VNNI, where eight bits can overflow and cost accuracy."
    )


def run(job: Job[Params]) -> dict[str, float]:
    from tasks.compression.onnx_quantize import quantize_dynamic_int8
    from tasks.model_card import read_card, write_card
    from tasks.release.model_files import ONNX, copy_companions, shipped_bytes

    source = job.input("model")
    card = read_card(source.path)
    if card.quantization:
        raise StageError(
            f"{source.stage!r} is quantized already ({card.quantization})", where="model", hint="Name its export."
        )
    quantize_dynamic_int8(
        source.path / ONNX,
        job.output / ONNX,
        per_channel=job.params.per_channel,
        reduce_range=job.params.reduce_range,
    )
    before, after = shipped_bytes(source.path), shipped_bytes(job.output)
    if after >= before:
        raise StageError(
            f"quantizing did not make it smaller ({before} -> {after} bytes)",
            where="model",
            hint="It holds no weight that ONNX Runtime quantizes (MatMul, Gemm, Gather).",
        )
    copy_companions(source.path, job.output)
    write_card(job.output, replace(card, quantization=job.params.scheme))
    return {"size_mb": after / 1e6, "size_ratio": after / before}


STAGE = Stage(kind="quantize", version=1, makes="onnx", params=Params, run=run)
