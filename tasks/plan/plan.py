"""What would happen: for every stage its key, whether it runs, is reused or resumes, and why.

A key needs the content digests of the stage's inputs. Those of a stage that is going to run are not known yet, so what
depends on it is `unknown`; once it has run, the same `resolve` gives the real key, and a stage whose inputs turned out
unchanged is reused after all (early cut-off).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from infra import refs
from infra.artifacts import ArtifactRef, Manifest
from infra.checkpoints import CheckpointStore
from infra.config_check import did_you_mean
from infra.errors import CorruptArtifact, StageError, StoreError, UsageError, WrongReference
from infra.keys import content_digest, digest
from infra.pointed import pointed
from infra.sources_read import SourceFile
from tasks.pipeline.load import Pipeline, StageNode
from tasks.pipeline.stopped import stopped_by
from tasks.plan.chosen_inputs import began_from, bound, champions
from tasks.plan.why import why_it_runs
from tasks.stage import InputField, identity_params

if TYPE_CHECKING:
    from infra.store import Store

Action = Literal["run", "reuse", "resume", "skip", "unknown"]


@dataclass(frozen=True)
class Resolved:
    """A stage whose inputs are known: its key, the identity payload the key is the hash of, and the inputs it has."""

    key: str
    identity: dict[str, Any]
    inputs: dict[str, list[ArtifactRef]]
    items: tuple[InputField, ...]
    sources: list[SourceFile] = field(default_factory=list)


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


def resolve(node: StageNode, made: dict[str, ArtifactRef], sources: list[SourceFile] | None = None) -> Resolved:
    """Key and identity of a stage, given the artifacts of the stages and refs it names; optional ones may lack."""
    inputs: dict[str, list[ArtifactRef]] = {}
    entries = []
    items = tuple(item for item in node.inputs if item.stage in made or not item.optional)
    for item in items:
        ref = made[item.stage]
        if ref.type not in item.types:
            raise UsageError(
                f"{item.stage!r} is a {ref.type}, but a {' or '.join(item.types)} is needed here",
                where=f"stages.{node.name}.{node.stage.kind}.{item.path}",
            )
        entries.append(
            {"field": item.path, "digest": ref.digest, "type": ref.type, "split": item.split, **_label(item)}
        )
        inputs.setdefault(item.field, []).append(ref)
    # That there was none is part of what was made, too.
    entries += [{"field": i.path, "digest": None, **_label(i)} for i in node.inputs if i.champion and i not in items]
    if sources is None:
        sources = _sources(node)
    identity = {
        "kind": node.stage.kind,
        "version": node.stage.version,
        "params": identity_params(node.params),
        "inputs": entries,
        "sources": content_digest((s.path, s.sha256) for s in sources) if node.stage.sources else None,
    }
    return Resolved(digest(identity), identity, inputs, items, sources)


def resolve_in(store: Store, node: StageNode, made: dict[str, ArtifactRef]) -> Resolved:
    """As `resolve`, with the inputs for which a ref's history decides (`tasks/plan/chosen_inputs.py`)."""
    made = made | champions(node, made, store)
    found = resolve(node, made)
    before = began_from(node, found, store)
    return resolve(node, made | before, found.sources) if before else found


def _sources(node: StageNode) -> list[SourceFile]:
    """The files a stage reads from outside the store. Raises StageError that names the stage's field."""
    try:
        return node.stage.sources(node.params) if node.stage.sources else []
    except StageError as error:
        place = f"stages.{node.name}.{node.stage.kind}"
        where = f"{place}.{error.where}" if error.where else place
        raise StageError(error.what, where=where, hint=error.hint) from error


def _label(item: Any) -> dict[str, str]:
    """Names that show in the result: of stages in a list, which are told apart by them, and of a champion's ref."""
    return {"label": item.stage} if "[" in item.path or item.champion else {}


def stored(store: Store, kind: str, resolved: Resolved) -> Manifest | None:
    """The committed artifact under a resolved key. Raises StoreError if its stored identity differs."""
    manifest = store.manifest(kind, resolved.key)
    if manifest is not None and manifest.identity != resolved.identity:
        raise StoreError(
            "the stored identity differs from the one asked for under the same key",
            where=f"artifacts/{kind}/{resolved.key}",
            hint="The store was tampered with or written by an incompatible version; quarantine that artifact.",
        )
    return manifest


def refuses(node: StageNode, manifest: Manifest) -> bool:
    """Whether the artifact is a gate's no."""
    return node.stage.refuses and not manifest.metrics.get("passed")


def resolve_refs(pipeline: Pipeline, store: Store) -> dict[str, ArtifactRef]:
    """The artifacts behind every `ref:NAME` of a bound pipeline. Raises UsageError on a ref that does not exist."""
    found: dict[str, ArtifactRef] = {}
    for node in pipeline.stages.values():
        for item in node.inputs:
            if item.ref and not item.champion and item.stage not in found:
                found[item.stage] = read_ref(store, item.ref, f"stages.{node.name}.{item.path}")
    return found


def read_ref(store: Store, name: str, where: str | None = None) -> ArtifactRef:
    """The artifact a ref points to, be it there or not. Raises UsageError with the nearest name if there is no ref.

    `latest` means what a stage made last, so what stands there counts; any other ref that names other content than its
    artifact has raises WrongReference.
    """
    entry = refs.get(store, name)
    if entry is None:
        hint = did_you_mean(name, refs.names(store)) or "This store holds no refs yet: run a pipeline first."
        raise UsageError(f"no ref named {name!r}", where=where, hint=hint)
    try:
        manifest = pointed(store, entry)
    except WrongReference:
        if not name.endswith("/latest"):
            raise
        manifest = store.manifest(entry.kind, entry.key)
    return manifest.ref if manifest else entry.artifact


def latest_ref(pipeline: str, stage: str) -> str:
    """Name of the ref to what a stage of a pipeline made last."""
    return f"{pipeline}/{stage}/latest"


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
