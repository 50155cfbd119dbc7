"""What would happen: for every stage its key, whether it runs, is reused or resumes, and why.

A key needs the content digests of the stage's inputs. Those of a stage that is going to run are not known yet, so what
depends on it is `unknown`; once it has run, the same `resolve` gives the real key, and a stage whose inputs turned out
unchanged is reused after all (early cut-off).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from infra.artifacts import ArtifactRef
from infra.checkpoints import CheckpointStore
from infra.errors import CorruptArtifact
from tasks.pipeline.dag import Pipeline
from tasks.pipeline.node import StageNode
from tasks.pipeline.stopped import stopped_by
from tasks.plan.chosen_inputs import began_from, bound, champions
from tasks.plan.resolved import Resolved, read_ref, refuses, resolve, stored
from tasks.plan.why import why_it_runs

if TYPE_CHECKING:
    from infra.store import Store

Action = Literal["run", "reuse", "resume", "skip", "unknown"]


@dataclass(frozen=True)
class PlannedStage:
    """One line of the plan. `key` and `artifact` are None while they cannot be known; `warnings` are the artifact's."""

    node: StageNode
    action: Action
    reason: str
    key: str | None = None
    artifact: ArtifactRef | None = None
    step: int | None = None
    refused: bool = False
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        action = f"resume @ step {self.step}" if self.action == "resume" else self.action
        return {
            "name": self.node.name,
            "kind": self.node.stage.kind,
            "action": action,
            "key": self.key,
            "reason": self.reason,
            "warnings": list(self.warnings),
        }


def resolve_in(store: Store, node: StageNode, made: dict[str, ArtifactRef]) -> Resolved:
    """As `resolve`, with the inputs for which a ref's history decides (`tasks/plan/chosen_inputs.py`)."""
    made = made | champions(node, made, store)
    found = resolve(node, made)
    before = began_from(node, found, store)
    return resolve(node, made | before, found.sources) if before else found


def resolve_refs(pipeline: Pipeline, store: Store) -> dict[str, ArtifactRef]:
    """The artifacts behind every `ref:NAME` of a bound pipeline. Raises UsageError on a ref that does not exist."""
    found: dict[str, ArtifactRef] = {}
    for node in pipeline.stages.values():
        for item in node.inputs:
            if item.ref and not item.champion and item.stage not in found:
                found[item.stage] = read_ref(store, item.ref, f"stages.{node.name}.{item.path}")
    return found


def make_plan(pipeline: Pipeline, store: Store, *, around_damage: bool = False) -> list[PlannedStage]:
    """The plan of a pipeline against a store, in execution order. Reads manifests and refs only, never payloads.

    around_damage: a stage whose manifest is damaged is planned as a run would do it: set aside and made again. Without
    it that raises CorruptArtifact.
    """
    given, pipeline = pipeline, bound(pipeline, store)
    known = resolve_refs(pipeline, store)
    unneeded = [node for name, node in given.stages.items() if name not in pipeline.stages]
    planned = [PlannedStage(node, "skip", "not needed: a ref takes its place") for node in unneeded]
    waiting: dict[str, str] = {}
    refused: set[str] = set()
    for node in pipeline.stages.values():
        stopped = stopped_by(refused, pipeline.stages.values())
        if node.name in stopped:
            planned.append(PlannedStage(node, "skip", f"{stopped[node.name]} refused"))
            continue
        blocker = next((waiting[n] for n in node.needs if n in waiting), None)
        if blocker is not None:
            waiting[node.name] = blocker
            planned.append(PlannedStage(node, "unknown", f"unknown until {blocker}"))
            continue
        line = _plan_stage(pipeline, node, store, known, around_damage)
        planned.append(line)
        if line.artifact is None:
            waiting[node.name] = node.name
        else:
            known[node.name] = line.artifact
            if line.refused:
                refused.add(node.name)
    return planned


def _plan_stage(
    pipeline: Pipeline, node: StageNode, store: Store, known: dict[str, ArtifactRef], around_damage: bool
) -> PlannedStage:
    resolved = resolve_in(store, node, known)
    try:
        manifest = stored(store, node.stage.kind, resolved)
    except CorruptArtifact as error:
        if not around_damage:
            raise
        return PlannedStage(node, "run", f"its artifact is set aside and made again: {error.what}", resolved.key)
    if manifest is not None:
        return PlannedStage(
            node,
            "reuse",
            "nothing changed",
            resolved.key,
            manifest.ref,
            refused=refuses(node, manifest),
            warnings=tuple(manifest.warnings),
        )
    checkpoints = CheckpointStore(store, node.stage.kind, resolved.key)
    if steps := {*checkpoints.steps()} - checkpoints.unreadable().keys():
        return PlannedStage(node, "resume", "it was interrupted", resolved.key, step=max(steps))
    return PlannedStage(node, "run", why_it_runs(pipeline.name, node, resolved, store), resolved.key)
