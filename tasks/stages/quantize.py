"""quantize: an ONNX model with its weights in sixteen, eight or four bits.

    quantize: {model: onnx}                                                    # dynamic_int8: no data needed
    quantize: {model: onnx, scheme: int4, method: gptq, data: texts}           # four bits, errors made up for
    quantize: {model: onnx, data: texts, keep_sensitive: 4}                    # the four worst layers stay in float
    quantize: {model: onnx, data: texts, min_agreement: 0.99}                  # refused where answers differ more often

Layers can stay in floating point by name (`keep_float`), or those whose quantization alone changes the model's answers
most (`keep_sensitive`), which is measured on training examples.
Convolutions are quantized by `static_int8` and `float16`; the other schemes leave them as they are and say so, and
refuse a model that is mostly convolutions.
Evidence in `records/`: layers.json (what became of each layer and why; with `keep_sensitive` how far each alone moves
the outputs); with `data` fidelity.json (how far the graph is from its parent on held-out examples).
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from infra.errors import StageError
from tasks.compression.quantization.grid_settings import GridParams
from tasks.stage import Input, Job, Stage

if TYPE_CHECKING:
    from tasks.compression.onnx.layers import Batch, Layer


class Params(GridParams):
    """The exported model and its new number format."""

    model: Annotated[str, Input("onnx")] = Field(description="Exported model to quantize.")
    scheme: Literal["dynamic_int8", "static_int8", "int4", "float16"] = Field(
        "dynamic_int8",
        description="`dynamic_int8`: weights int8, activations scaled to uint8 as they come. `static_int8`: "
        "activations scaled as calibration examples were, convolutions too. `int4`: weights in four bits, activations "
        "as they are; embeddings int8. `float16`: weights and activations in half precision, token ids and outputs as "
        "they were.",
    )
    method: Literal["nearest", "gptq"] = Field(
        "nearest",
        description="For `int4`. `nearest`: each weight is rounded. `gptq`: one after the other, and the rest makes up "
        "for the error on calibration examples (Frantar et al., 2022).",
    )
    data: Annotated[str | None, Input("dataset", "tokens")] = Field(
        None,
        description="Calibration examples: its training split. Where it has a validation split, or another is named "
        "(`texts.test`), the graph is compared with its parent on that. None: neither.",
    )
    samples: int = Field(128, ge=1, description="Calibration examples, spread evenly over the training split.")
    keep_sensitive: int = Field(
        0, ge=0, description="So many layers stay in floating point: those which alone change the outputs most."
    )
    min_agreement: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Refuse a graph that decides less than this share of the held-out `data` as its parent does.",
    )

    @model_validator(mode="after")
    def _together(self) -> Params:
        if self.scheme != "int4" and (self.method != "nearest" or self.group_size != 32):
            raise ValueError(f"`method` and `group_size` are for `scheme: int4`, not {self.scheme}")
        why = {
            "static_int8": self.scheme == "static_int8",
            "gptq": self.method == "gptq",
            "keep_sensitive": self.keep_sensitive > 0,
            "min_agreement": self.min_agreement is not None,
        }
        asking = [name for name, asks in why.items() if asks]
        if asking and self.data is None:
            raise ValueError(f"`{asking[0]}` is measured on examples: give `data`")
        return self


def run(job: Job[Params]) -> dict[str, float]:
    import json

    import onnx

    from tasks.compression.onnx.layers import fold_transposes, layers, matching
    from tasks.compression.quantization.coverage import without_form
    from tasks.compression.quantization.int8 import share_tables
    from tasks.compression.quantization.sensitivity import sensitivities
    from tasks.models.card import read_card, write_card
    from tasks.models.files import ONNX, copy_companions, shipped_bytes

    params, source = job.params, job.input("model")
    card = read_card(source.path)
    if card.quantization:
        raise StageError(
            f"{source.stage!r} is quantized already ({card.quantization})", where="model", hint="Name its export."
        )
    file, target = source.path / ONNX, job.output / ONNX
    graph = onnx.load(str(file))
    tied = fold_transposes(graph)
    if tied and params.scheme != "float16":
        file = job.scratch / ONNX
        onnx.save(graph, str(file))
    named = layers(graph.graph)
    unable = without_form(
        {n.name: (n.operator, n.size) for n in named}, params.scheme, where=f"stages.{job.name}.scheme"
    )
    found = [layer for layer in named if layer.name not in unable]
    calibrating = params.scheme == "static_int8" or params.method == "gptq" or params.keep_sensitive > 0
    batches = _calibration(job, [given.name for given in graph.graph.input]) if calibrating else []
    kept = matching([layer.name for layer in named], params.keep_float, where=f"stages.{job.name}.keep_float")
    kept = [name for name in kept if name not in unable]
    moved: dict[str, float] = {}
    if params.keep_sensitive:
        asked = [layer.name for layer in found if layer.name not in kept]
        moved = sensitivities(
            file,
            asked,
            lambda name, to: _quantize(params, file, to, found, [n.name for n in found if n.name != name], batches),
            batches,
            job.scratch,
            job.progress,
        )
        kept += sorted(asked, key=lambda name: -moved[name])[: params.keep_sensitive]
    if len(kept) >= len(found):
        raise StageError(
            f"all {len(found)} layers stay in floating point, so nothing is quantized",
            where=f"stages.{job.name}.keep_sensitive" if params.keep_sensitive else f"stages.{job.name}.keep_float",
            hint="Keep fewer of them.",
        )
    _quantize(params, file, target, found, kept, batches)
    if tied and params.scheme == "dynamic_int8":
        share_tables(target, tied)
    before, after = shipped_bytes(source.path), shipped_bytes(job.output)
    if after >= before:
        raise StageError(
            f"quantizing did not make it smaller ({before} -> {after} bytes)",
            where="model",
            hint="It holds no weight that ONNX Runtime quantizes (MatMul, Gemm, Gather, Conv).",
        )
    faithful = _fidelity(job) if params.data is not None else {}
    described = [
        {
            "layer": layer.name,
            "operator": layer.operator,
            "quantized": layer.name not in kept and layer.name not in unable,
            **({"why": f"{params.scheme} has no form for {layer.operator}"} if layer.name in unable else {}),
            **({"movement": moved[layer.name]} if layer.name in moved else {}),
        }
        for layer in named
    ]
    (job.records / "layers.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    copy_companions(source.path, job.output)
    write_card(job.output, replace(card, quantization=params.scheme))
    return {
        **faithful,
        "size_mb": after / 1e6,
        "size_ratio": after / before,
        "layers_quantized": float(len(found) - len(kept)),
        "layers_kept": float(len(kept) + len(unable)),
    }


def _quantize(
    params: Params, source: Path, target: Path, found: list[Layer], kept: list[str], batches: list[Batch]
) -> None:
    from tasks.compression.onnx.layers import input_moments
    from tasks.compression.quantization.float16 import convert_float16
    from tasks.compression.quantization.int4 import quantize_int4
    from tasks.compression.quantization.int8 import quantize_dynamic_int8, quantize_static_int8

    if params.scheme == "int4":
        chosen = [layer for layer in found if layer.name not in kept and layer.operator != "Gather"]
        moments = input_moments(source, chosen, batches) if params.method == "gptq" else None
        quantize_int4(source, target, chosen, params.group_size, moments)
        quantize_dynamic_int8(
            target, target, per_channel=False, reduce_range=False, keep_float=kept, operators=("Gather",)
        )
        return
    settings: dict[str, Any] = {
        "per_channel": params.per_channel,
        "reduce_range": params.reduce_range,
        "keep_float": kept,
    }
    if params.scheme == "float16":
        convert_float16(source, target, keep_float=kept)
    elif params.scheme == "static_int8":
        quantize_static_int8(source, target, batches, **settings)
    else:
        quantize_dynamic_int8(source, target, **settings)


def _fidelity(job: Job[Params]) -> dict[str, float]:
    """How far the graph is from its parent. Raises StageError where they agree less than `min_agreement`."""
    import json

    from tasks.compression.onnx.fidelity import fidelity
    from tasks.data.dataset.layout import has_split
    from tasks.models.runtime import OnnxRuntime

    source, data, least = job.input("model"), job.input("data"), job.params.min_agreement
    split = data.split or "validation"
    if data.split is None and least is None and not has_split(data.path, data.manifest.type, split):
        return {}
    graphs = [OnnxRuntime(folder, job.cores) for folder in (source.path, job.output)]
    found = fidelity(source, data, split, *(graph.outputs for graph in graphs))
    (job.records / "fidelity.json").write_text(json.dumps(asdict(found), indent=2) + "\n", encoding="utf-8")
    where = f"stages.{job.name}.min_agreement"
    if least is not None and found.agreement is None:
        raise StageError(
            "this model's outputs are numbers, on which nothing can agree",
            where=where,
            hint="Leave it out, and let `evaluate` and `gate` judge the graph.",
        )
    if least is not None and found.agreement is not None and found.agreement < least:
        raise StageError(
            f"of what the model decides on {data.stage}.{split}, {found.agreement:.2%} stays, less than {least:.2%}",
            where=where,
            hint="Keep layers in float (`keep_sensitive: 4`), use another `scheme`, or ask for less.",
        )
    return found.metrics()


def _calibration(job: Job[Params], names: list[str]) -> list[Batch]:
    """Training examples as the runtime takes them; names: the graph's inputs. Raises StageError where none is."""
    from tasks.compression.pruning.calibration import calibration_batches
    from tasks.models.trained_for import trained_for

    folder = job.input("model").path
    objective = trained_for(folder)
    features = objective.examples(job.input("data"), "train")
    if not features:
        raise StageError(
            "the training split is empty: there is nothing to calibrate on",
            where=f"stages.{job.name}.data",
            hint="Name a dataset with training examples.",
        )
    batches = calibration_batches(objective, features, job.params.samples)
    return [{name: batch[name].numpy() for name in names} for batch in batches]


STAGE = Stage(kind="quantize", version=5, makes="onnx", params=Params, run=run)
