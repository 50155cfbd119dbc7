"""promote: move a name such as `stdlib-code/production` to a model that a gate let through.

Payload: `release.json` (what the name points to, on which verdict) and `README.md`, the model's card: how good it is,
why it ships, what it was made of, how to load it without Forgeline.
"""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import Field

from infra.errors import GateRefused
from tasks.release.model_page import model_page
from tasks.release.promotion import publish
from tasks.stage import Input, Job, Stage, StageParams


class Params(StageParams):
    """What becomes what."""

    model: Annotated[str, Input("model", "onnx")] = Field(description="Model to promote.")
    gate: Annotated[str, Input("verdict")] = Field(description="Verdict on that very model.")
    ref: str = Field(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$",
        description="Name that will point to the model, e.g. `stdlib-code/production`.",
    )


def run(job: Job[Params]) -> dict[str, float]:
    model, gate = job.input("model").manifest, job.input("gate")
    verdict = json.loads((gate.path / "verdict.json").read_text(encoding="utf-8"))
    if not verdict["passed"]:
        failed = [r["sentence"] for r in verdict["requirements"] if not r["passed"]]
        raise GateRefused("the gate refused the candidate", where=f"stage {gate.stage}", hint=" ".join(failed))
    judged = verdict["candidate"]
    if judged["digest"] != model.digest:
        raise GateRefused(
            f"the verdict is on {judged['name']!r} ({judged['digest'][:12]}), not on this model ({model.digest[:12]})",
            where="model",
            hint=f"Promote {judged['name']!r}, or make {job.input('model').stage!r} the gate's candidate.",
        )
    release = {
        "ref": job.params.ref,
        "model": {"kind": model.kind, "key": model.key, "digest": model.digest, "type": model.type},
        "verdict": gate.manifest.digest,
    }
    (job.output / "release.json").write_text(json.dumps(release, indent=2) + "\n", encoding="utf-8")
    page = model_page(job.store, job.params.ref, job.input("model"), verdict, gate.manifest)
    (job.output / "README.md").write_text(page, encoding="utf-8")
    return {}


STAGE = Stage(kind="promote", version=2, makes="release", params=Params, run=run, publish=publish)
