"""A run of a pipeline whose searches try some of their candidates: rounds of trials first, then the whole of it.

Each round is a run like any other, of the trials alone; what they reached, read back from the store, decides the next.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace

from infra.artifacts import ArtifactRef
from infra.errors import GateRefused
from infra.open_store import open_store
from infra.patience import Patience
from infra.store import Store
from tasks.data.parts.parts import input_manifest
from tasks.pipeline.dag import Pipeline
from tasks.pipeline.node import StageNode
from tasks.pipeline.search import Results
from tasks.pipeline.search_trials import Result
from tasks.plan.plan import make_plan

Load = Callable[[Results], Pipeline]


def with_known_trials(load: Load, patience: Patience | None = None) -> Pipeline:
    """The pipeline with every trial that the results in its store lead to; those without a result are the last."""
    results, pipeline = Results(), load(Results())
    while any(search.undecided for search in pipeline.searches):
        found = Results(_results(pipeline, patience))
        if found == results:
            break
        results, pipeline = found, load(found)
    return pipeline


def run_trials(load: Load, run: Callable[[Pipeline], int], say: Callable[[str], None]) -> tuple[Pipeline | None, int]:
    """Run rounds of trials until none is to be drawn. Returns the pipeline of all; None where a round failed.

    run: runs a pipeline, returns its exit code, which is returned as well; a gate's (all were dropped) is no failure.
    """
    began, pipeline = time.monotonic(), with_known_trials(load)
    patience: Patience | None = None
    while open_now := [search for search in pipeline.searches if search.undecided]:
        results = _results(pipeline, patience)
        for search in open_now:
            assert search.space.trials is not None
            minutes = search.space.trials.minutes
            if minutes is not None and time.monotonic() - began > 60 * minutes:
                say(f"search {search.name}: {minutes:g} minutes are over; the best of what was tried is taken")
                return load(Results(results, closed=True)), 0
            tried = len(results[search.name])
            say(f"search {search.name}: trials {tried + 1} to {len(search.trials)} of {search.space.trials.number}")
        code = run(_trials_of(pipeline))
        if code not in (0, GateRefused.exit_code):
            return None, code
        patience = Patience()  # by now the store is known to be there
        pipeline = with_known_trials(load, patience)
    return pipeline, 0


def _trials_of(pipeline: Pipeline) -> Pipeline:
    """The trials of a pipeline's searches, and what they need."""
    wanted: dict[str, StageNode] = {}
    asked = [stage for search in pipeline.searches for stage in search.trials.values()]
    while asked:
        name = asked.pop()
        if name not in wanted:
            wanted[name] = pipeline.stages[name]
            asked += pipeline.stages[name].needs
    return replace(pipeline, stages={name: node for name, node in pipeline.stages.items() if name in wanted})


def _results(pipeline: Pipeline, patience: Patience | None) -> dict[str, dict[str, Result]]:
    """Of each search the candidates that were made and judged, or dropped."""
    store = open_store(pipeline.store, patience=patience)
    plan = {line.node.name: line for line in make_plan(_trials_of(pipeline), store)}
    found: dict[str, dict[str, Result]] = {}
    for search in pipeline.searches:
        of = found.setdefault(search.name, {})
        for candidate, stage in search.trials.items():
            line = plan[stage]
            if line.action == "skip":
                of[candidate] = None
            elif line.artifact is not None:
                of[candidate] = _result(store, line.artifact, candidate)
    return found


def _result(store: Store, scores: ArtifactRef, candidate: str) -> tuple[float, float]:
    manifest = input_manifest(scores.kind, scores.key, store)
    judged = json.loads((store.fetch(manifest) / "scores.json").read_text(encoding="utf-8"))
    model = judged["models"][candidate]
    quality = float(model["metrics"][judged["primary_metric"]]["value"])
    return (quality if judged["greater_is_better"] else -quality), float(model["size_mb"])
