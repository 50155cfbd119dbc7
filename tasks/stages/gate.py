"""gate: does a candidate meet its requirements? A refusal is a result too: it is committed, and dependants stop."""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import Field, model_validator

from tasks.release.gate.judging import judge, read_replicates, require_models, verdict_on
from tasks.release.gate.requirement import RELATIVE, Requirement
from tasks.release.gate.slices import awaited
from tasks.stage import Input, Job, Stage, StageParams


class Params(StageParams):
    """The candidate, the model it is compared with, and the requirements."""

    scores: Annotated[str, Input("scores")] = Field(description="Evaluation that holds the models.")
    candidate: str = Field(description="Model to be let through: its name in the evaluation.")
    against: str | None = Field(
        None,
        description="Model it is compared with, in the same evaluation: a stage's, or `champion`, of which nothing is "
        "asked before there is one. None: no comparison.",
    )
    require: list[Requirement] = Field(min_length=1, description="All of these must hold.")

    @model_validator(mode="after")
    def _comparable(self) -> Params:
        relative = next((r for r in self.require if r.rule in RELATIVE), None)
        if relative is not None and self.against is None:
            raise ValueError(f"{relative.rule} of {relative.metric} compares two models: set `against`")
        if self.against == self.candidate:
            raise ValueError("`against` is the candidate itself")
        return self


def run(job: Job[Params]) -> dict[str, float]:
    params, source = job.params, job.input("scores")
    scores = json.loads((source.path / "scores.json").read_text(encoding="utf-8"))
    models = scores["models"]
    others = [params.against] if params.against and not awaited(scores, params.against) else []
    wanted = {"candidate": [params.candidate], "against": others}
    require_models(source.stage, models, wanted)
    replicates = read_replicates(source.path)
    outcomes = [judge(r, scores, replicates, params.candidate, params.against) for r in params.require]
    verdict = verdict_on(params.candidate, params.against, scores, source.manifest.digest, outcomes)
    (job.output / "verdict.json").write_text(json.dumps(verdict, indent=2) + "\n", encoding="utf-8")
    return {
        "passed": float(verdict["passed"]),
        "requirements": float(len(outcomes)),
        "met": float(sum(o.passed for o in outcomes)),
    }


STAGE = Stage(kind="gate", version=1, makes="verdict", params=Params, run=run, refuses=True)
