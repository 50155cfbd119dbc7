"""`forgeline watch --here`: the run of a decision, done in the process of the look instead of where it is deployed."""

from __future__ import annotations

from typing import Any

from flows.run import run_pipeline
from infra.artifacts import ArtifactRef
from infra.errors import GateRefused, Preempted, StageError
from tasks.pipeline.dag import Pipeline
from tasks.plan.watching import Entry
from tasks.run.decided_run import Fate


def make_here(pipeline: Pipeline) -> dict[str, ArtifactRef]:
    """Run a (cut down) pipeline; the artifact of each stage. Raises StageError where it does not end well."""
    record, code = run_pipeline(pipeline, quiet=True)
    for stage in record.data["stages"]:
        if stage["error"]:
            error = stage["error"]
            raise StageError(f"the data cannot be made: {error['what']}", where=error["where"], hint=error["hint"])
    if code:
        raise StageError(f"the data were not made: the run was {record.data['status']}", hint="The next look tries it.")
    return {stage["name"]: ArtifactRef(**stage["artifact"]) for stage in record.data["stages"]}


class RunHere:
    """Starts runs by doing them: each has ended when it has started.

    code: the exit code of the last one. error: what its stages died of.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.code, self.error = pipeline, 0, ""

    def start(self, entry: Entry, attempt: int) -> dict[str, Any]:
        record, self.code = run_pipeline(self.pipeline, quiet=True)
        note = {"run": record.data["run"]}
        if self.code in (0, GateRefused.exit_code):
            return note
        stages = [stage for stage in record.data["stages"] if stage["error"]]
        errors = "; ".join(f"{stage['name']}: {stage['error']['what']}" for stage in stages)
        self.error = errors or f"the run was {record.data['status']}"
        how = "interrupted" if self.code in (Preempted.exit_code, 130) else "failed"
        return {**note, how: self.error}

    def fate(self, note: dict[str, Any]) -> Fate:
        return fate_here(note)


def fate_here(note: dict[str, Any]) -> Fate:
    """What became of a run that was done in the process of a look, as it noted itself."""
    if "failed" in note:
        return Fate("failed", note["failed"])
    return Fate("interrupted", note["interrupted"]) if "interrupted" in note else Fate("done")
