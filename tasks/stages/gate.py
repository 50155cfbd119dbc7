"""gate: does a candidate meet its requirements? A refusal is a result too: it is committed, and dependants stop."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from infra.errors import StageError
from tasks.release.requirements import RELATIVE, Replicates, Requirement, judge
from tasks.stage import Input, Job, Stage, StageParams


class Params(StageParams):
    """Who is judged, against whom, by what."""

    scores: Annotated[str, Input("scores")] = Field(description="Evaluation that holds the models.")
    candidate: str = Field(description="Model to be let through: its name in the evaluation.")
    against: str | None = Field(
        None, description="Model it is compared with, in the same evaluation. None: no comparison."
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
    for field, name in (("candidate", params.candidate), ("against", params.against)):
        if name is not None and name not in models:
            close = difflib.get_close_matches(name, models, n=1)
            guess = f"Did you mean {close[0]}? " if close else ""
            raise StageError(
                f"{source.stage!r} evaluated no model named {name!r}",
                where=field,
                hint=f"{guess}It has: {', '.join(models)}.",
            )
    replicates = _replicates(source.path / "replicates.safetensors")
    outcomes = [judge(r, scores, replicates, params.candidate, params.against) for r in params.require]
    passed = all(outcome.passed for outcome in outcomes)
    verdict: dict[str, Any] = {
        "passed": passed,
        "candidate": {"name": params.candidate, **models[params.candidate]["artifact"]},
        "against": {"name": params.against, **models[params.against]["artifact"]} if params.against else None,
        "data": scores["data"],
        "scores": source.manifest.digest,
        "resamples": scores["resamples"],
        "requirements": [outcome.to_json() for outcome in outcomes],
    }
    (job.output / "verdict.json").write_text(json.dumps(verdict, indent=2) + "\n", encoding="utf-8")
    return {
        "passed": float(passed),
        "requirements": float(len(outcomes)),
        "met": float(sum(o.passed for o in outcomes)),
    }


def _replicates(file: Path) -> dict[str, Replicates]:
    from safetensors.numpy import load_file

    found: dict[str, Any] = {}
    for name, values in load_file(file).items():
        model, _, metric = name.partition("/")  # classes that metrics are named for may hold a slash
        found.setdefault(model, {})[metric] = values
    return found


STAGE = Stage(kind="gate", version=1, makes="verdict", params=Params, run=run, refuses=True)
