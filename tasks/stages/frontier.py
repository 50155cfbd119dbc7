"""frontier: of all models of an evaluation the smallest one that is good enough. It decides as a gate does.

    smallest:
      frontier: {scores: scores, against: teacher, require: [{metric: f1_macro, max_drop: 0.02, confidence: 0.95}]}
    release:
      promote: {gate: smallest, ref: reviews/production}       # whichever was chosen

Each candidate is an ordinary artifact with stages of its own, so what they share is made once. Choosing among many
makes it likelier that one passes by luck: a `confidence` is that of all candidates together (Bonferroni), so each is
asked for more. Payload: `verdict.json`, a gate's, and in it `candidates`: every one with its requirements, its cost,
and whether it is on the Pareto front of quality, cost and latency.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from infra.errors import StageError
from tasks.evaluation.champion import NAME
from tasks.release.gate.judging import judge, read_replicates, require_models, value_of, verdict_on
from tasks.release.gate.requirement import Requirement
from tasks.release.gate.slices import awaited
from tasks.stage import Input, Job, Stage, StageParams


class Params(StageParams):
    """The models to choose from, the model they are compared with, and the requirements."""

    scores: Annotated[str, Input("scores")] = Field(description="Evaluation that holds the models.")
    against: str = Field(description="Model the candidates are compared with: its name in the evaluation.")
    candidates: list[str] | None = Field(
        None, min_length=1, description="Models to choose from. None: all others of the evaluation."
    )
    require: list[Requirement] = Field(min_length=1, description="All of these must hold for a candidate.")
    smallest: str = Field(
        "size_mb",
        description="The cost by which the smallest is chosen: `size_mb`, `parameters`, `latency_p50_ms@1` ...",
    )


def run(job: Job[Params]) -> dict[str, float]:
    params, source = job.params, job.input("scores")
    scores = json.loads((source.path / "scores.json").read_text(encoding="utf-8"))
    models = scores["models"]
    names = [name for name in params.candidates or models if name not in (params.against, NAME)]
    others = [] if awaited(scores, params.against) else [params.against]
    require_models(source.stage, models, {"against": others, "candidates": names})
    if not names:
        raise StageError(
            f"{source.stage!r} holds no model but {params.against!r}",
            where="scores",
            hint="Evaluate the candidates beside it.",
        )
    replicates = read_replicates(source.path)
    asked = [requirement.one_of(len(names)) for requirement in params.require]
    outcomes = {name: [judge(r, scores, replicates, name, params.against) for r in asked] for name in names}
    passing = [name for name in names if all(outcome.passed for outcome in outcomes[name])]
    costs = {name: value_of(models[name], params.smallest) for name in names}
    quality = {name: _goodness(scores, name) for name in names}
    chosen = min(passing or names, key=lambda n: (costs[n], -quality[n]) if passing else (-quality[n], costs[n]))
    front = pareto_front({name: _axes(scores, name, costs[name]) for name in names})
    verdict = verdict_on(chosen, params.against, scores, source.manifest.digest, outcomes[chosen]) | {
        "smallest": params.smallest,
        "candidates": [
            {
                "name": name,
                "passed": name in passing,
                "on_front": name in front,
                "cost": costs[name],
                "artifact": models[name]["artifact"],
                "requirements": [outcome.to_json() for outcome in outcomes[name]],
            }
            for name in sorted(names, key=costs.__getitem__)
        ],
    }
    (job.output / "verdict.json").write_text(json.dumps(verdict, indent=2) + "\n", encoding="utf-8")
    return {
        "passed": float(bool(passing)),
        "candidates": float(len(names)),
        "candidates_passed": float(len(passing)),
        "on_front": float(len(front)),
    }


def pareto_front(points: dict[str, Sequence[float]]) -> list[str]:
    """The Pareto front: those that no other model equals in everything and beats in something; less is better."""

    def beaten(one: Sequence[float]) -> bool:
        return any(
            all(a <= b for a, b in zip(other, one, strict=True)) and tuple(other) != tuple(one)
            for other in points.values()
        )

    return [name for name, point in points.items() if not beaten(point)]


def _goodness(scores: dict[str, Any], name: str) -> float:
    value = value_of(scores["models"][name], scores["primary_metric"])
    return value if scores["greater_is_better"] else -value


def _axes(scores: dict[str, Any], name: str, cost: float) -> list[float]:
    """What the front is drawn over: badness, the cost, and each latency that was measured."""
    latency = scores["models"][name].get("latency_ms", {})
    return [-_goodness(scores, name), cost, *(latency[size]["p50"] for size in sorted(latency))]


STAGE = Stage(kind="frontier", version=1, makes="verdict", params=Params, run=run, refuses=True)
