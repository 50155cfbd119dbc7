"""export: a trained model as a file other runtimes can run, proven equal to it or refused.

    export: {model: student, data: texts}          # proven on the examples of texts.validation
    export: {model: student}                       # on made-up ones

Evidence in `records/`: fidelity.json (how far the graph is from the model, and on which example it is farthest).
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from infra.errors import StageError
from tasks.stage import Input, Job, Stage, StageParams


class Params(StageParams):
    """The model to export, and the tolerance of the check."""

    model: Annotated[str, Input("model", trained=True)] = Field(description="Model to export.")
    data: Annotated[str | None, Input("dataset", "tokens")] = Field(
        None,
        description="Examples on which the graph is compared with the model, with the split (`texts.test`); default "
        "validation. None: made-up ones, of several sizes.",
    )
    format: Literal["onnx"] = Field("onnx", description="`onnx`: one graph file with free batch size and lengths.")
    tolerance: float = Field(
        1e-3,
        gt=0,
        description="Largest absolute difference allowed between the outputs of the export and of the model.",
    )


def run(job: Job[Params]) -> dict[str, float]:
    import json

    import torch
    import transformers

    from tasks.compression.onnx.export import Inference, export_onnx, largest_difference
    from tasks.compression.onnx.fidelity import fidelity
    from tasks.models.card import read_card, write_card
    from tasks.models.files import ONNX, copy_companions, shipped_bytes
    from tasks.models.runtime import OnnxRuntime
    from tasks.models.trained_for import trained_for

    if job.execution.threads != "auto":
        torch.set_num_threads(job.execution.threads)
    tolerance, source = job.params.tolerance, job.input("model")
    card = read_card(source.path)
    objective = trained_for(source.path)
    auto_class = getattr(transformers, objective.auto_class)
    model = auto_class.from_pretrained(source.path, trust_remote_code=False, dtype=torch.float32).eval()
    job.progress(0, 2)
    export_onnx(model, objective, job.output / ONNX)
    job.progress(1, 2)
    compared: dict[str, Any]
    if job.params.data is None:
        metrics = {"max_abs_diff": largest_difference(model, objective, job.output / ONNX)}
        compared, where = metrics, "on made-up inputs"
    else:
        data = job.input("data")
        graph = OnnxRuntime(job.output, job.cores)
        parent = Inference(model, objective).eval()
        found = fidelity(source, data, data.split or "validation", parent.outputs, graph.outputs)
        metrics, compared = found.metrics(), asdict(found)
        where = f"at example {found.example!r}: {found.given:.6g} and not {found.parent:.6g}"
    (job.records / "fidelity.json").write_text(
        json.dumps({**compared, "tolerance": tolerance}, indent=2) + "\n", encoding="utf-8"
    )
    if metrics["max_abs_diff"] > tolerance:
        raise StageError(
            f"the export differs from the model by {metrics['max_abs_diff']:.3g}, more than {tolerance:.3g}, {where}",
            where=f"stages.{job.name}.tolerance",
            hint="The graph does not compute what the model computes, and is not kept. Where it is a difference of "
            "rounding, which grows with depth and with the outputs, raise `tolerance`, and let `evaluate` and `gate` "
            "judge the graph.",
        )
    copy_companions(source.path, job.output)
    write_card(job.output, replace(card, format="onnx"))
    return {**metrics, "size_mb": shipped_bytes(job.output) / 1e6}


STAGE = Stage(kind="export", version=2, makes="onnx", params=Params, run=run, warm=True)
