"""export: a trained model as a file other runtimes can run, proven equal to it or refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from infra.errors import StageError
from tasks.stage import Input, Job, Stage, StageParams


class Params(StageParams):
    """What is exported, and how exact it has to be."""

    model: Annotated[str, Input("model")] = Field(description="Model to export.")
    format: Literal["onnx"] = Field("onnx", description="`onnx`: one graph file with free batch and sequence sizes.")
    tolerance: float = Field(
        1e-3, gt=0, description="Largest absolute difference allowed between the logits of the export and of the model."
    )


def run(job: Job[Params]) -> dict[str, float]:
    import json

    import torch
    import transformers

    from tasks.compression.onnx_export import export_onnx, largest_difference
    from tasks.model_card import read_card, write_card
    from tasks.release.model_files import ONNX, copy_companions, shipped_bytes

    if job.execution.threads != "auto":
        torch.set_num_threads(job.execution.threads)
    source = job.input("model")
    card = read_card(source.path)
    auto_class = getattr(transformers, card.objective.auto_class)
    model = auto_class.from_pretrained(source.path, trust_remote_code=False, dtype=torch.float32).eval()
    job.progress(0, 2)
    export_onnx(model, card.objective, job.output / ONNX, card.max_length)
    job.progress(1, 2)
    difference = largest_difference(model, card.objective, job.output / ONNX, card.max_length)
    proof = {"largest_difference": difference, "tolerance": job.params.tolerance}
    (job.records / "proof.json").write_text(json.dumps(proof, indent=2) + "\n", encoding="utf-8")
    if difference > job.params.tolerance:
        raise StageError(
            f"the export differs from the model by {difference:.3g}, more than {job.params.tolerance:.3g}",
            where="tolerance",
            hint="The graph does not compute what the model computes; it is not kept.",
        )
    copy_companions(source.path, job.output)
    write_card(job.output, replace(card, format="onnx"))
    return {"largest_difference": difference, "size_mb": shipped_bytes(job.output) / 1e6}


STAGE = Stage(kind="export", version=1, makes="onnx", params=Params, run=run, warm=True)
