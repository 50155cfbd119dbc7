"""promote: move a name such as `stdlib-code/production` to a model that a gate let through.

Payload: `release.json` (what the name points to, on which verdict) and `README.md`, the model's card: how good it is,
why it ships, what it was made of, how to load it without Forgeline.

With `weights`, `<ref>-weights` follows: the trained model from which the release was made, for a later training to go
on from (`model: "ref:stdlib-code/production-weights or base"`).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from infra.errors import GateRefused, StageError
from tasks.evaluation.champion import NAME
from tasks.release.promotion.model_page import lineage, model_page
from tasks.release.promotion.refs import publish
from tasks.stage import Input, InputArtifact, Job, Stage, StageParams

if TYPE_CHECKING:
    from infra.store import Store


class Params(StageParams):
    """The model, the verdict on it, and the name that will point to it."""

    model: Annotated[str | None, Input("model", "onnx")] = Field(
        None, description="Model to promote. None: the one that the verdict let through."
    )
    gate: Annotated[str, Input("verdict")] = Field(description="The gate that judged this model.")
    weights: Annotated[str | None, Input("model")] = Field(
        None, description="Trained model behind the release; `<ref>-weights` will point to it. None: to nothing."
    )
    ref: str = Field(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,99})*$",
        description="Name that will point to the model, e.g. `stdlib-code/production`.",
    )


def run(job: Job[Params]) -> dict[str, float]:
    gate = job.input("gate")
    verdict = json.loads((gate.path / "verdict.json").read_text(encoding="utf-8"))
    if not verdict["passed"]:
        failed = [r["sentence"] for r in verdict["requirements"] if not r["passed"]]
        raise GateRefused("the gate refused the candidate", where=f"stage {gate.stage}", hint=" ".join(failed))
    judged = verdict["candidate"]
    given = job.input("model") if job.params.model is not None else _let_through(job.store, judged)
    model = given.manifest
    if judged["digest"] != model.digest:
        raise GateRefused(
            f"the verdict is on {judged['name']!r} ({judged['digest'][:12]}), not on this model ({model.digest[:12]})",
            where="model",
            hint=f"Promote {judged['name']!r}, or make {given.stage!r} the gate's candidate.",
        )
    release: dict[str, Any] = {
        "ref": job.params.ref,
        "model": {"kind": model.kind, "key": model.key, "digest": model.digest, "type": model.type},
        "verdict": gate.manifest.digest,
    }
    if job.params.weights is not None:
        weights = job.input("weights")
        if weights.manifest.digest not in {one.digest for one in lineage(job.store, model)}:
            raise StageError(
                f"{judged['name']!r} was not made from {weights.stage!r}",
                where="weights",
                hint="Name the stage that trained it: the next training begins from that.",
            )
        release["weights"] = asdict(weights.manifest.ref)
    if NAME in verdict and verdict[NAME]["ref"] == job.params.ref:
        # Who had to be beaten has to be the one still when the release is published.
        release[NAME] = {"digest": verdict[NAME].get("digest"), "challengers": verdict[NAME]["challengers"]}
    (job.output / "release.json").write_text(json.dumps(release, indent=2) + "\n", encoding="utf-8")
    page = model_page(job.store, job.params.ref, given, verdict, gate.manifest)
    (job.output / "README.md").write_text(page, encoding="utf-8")
    return {}


def _let_through(store: Store, judged: dict[str, str]) -> InputArtifact:
    """The artifact a verdict is on. Raises StageError where the store no longer has it."""
    manifest = store.manifest(judged["kind"], judged["key"])
    if manifest is None:
        raise StageError(
            f"{judged['name']!r}, which was let through, is no longer in the store",
            where="gate",
            hint="Run the pipeline again: it is made again.",
        )
    return InputArtifact(judged["name"], store.fetch(manifest), manifest)


STAGE = Stage(kind="promote", version=4, makes="release", params=Params, run=run, publish=publish)
