"""Inputs that refs decide, against a store: what `ref:NAME or STAGE` is, who is champion, what training began from.

Promotions move refs, so a pipeline that reads what it promotes would find its inputs changed by its own success, and
run again for ever. What is chosen here is what a stage had when it made what stands there now.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from infra import refs
from infra.artifacts import ArtifactRef
from infra.errors import StageError
from infra.pointed import pointed
from tasks.pipeline.dag import Pipeline
from tasks.pipeline.node import StageNode, needs_of
from tasks.release.promotion.standing import champion_of

if TYPE_CHECKING:
    from infra.artifacts import Manifest
    from infra.store import Store
    from tasks.plan.resolved import Resolved
    from tasks.stage import InputField

REMEMBERED = 20
"""Moves of a ref that are looked at."""


def bound(pipeline: Pipeline, store: Store) -> Pipeline:
    """The pipeline with every `ref:NAME or STAGE` decided, less the stages that only a missing ref would need."""
    nodes = pipeline.stages.values()
    asked = {item.ref for node in nodes for item in node.inputs if item.ref and item.fallback}
    if not asked:
        return pipeline
    there = {name for name in asked if refs.get(store, name) is not None}
    decided = {node.name: _decided(node, there) for node in nodes}
    wanted = decided.keys() - {name for node in nodes for name in node.needs}
    for node in reversed(decided.values()):  # each after what it needs
        if node.name in wanted:
            wanted |= set(node.needs)
    return replace(pipeline, stages={name: node for name, node in decided.items() if name in wanted})


def _decided(node: StageNode, there: Collection[str]) -> StageNode:
    inputs = tuple(
        replace(item, text=f"ref:{item.ref}" if item.ref in there else item.fallback) if item.fallback else item
        for item in node.inputs
    )
    return replace(node, inputs=inputs, needs=needs_of(inputs, node.after))


def champions(node: StageNode, made: dict[str, ArtifactRef], store: Store) -> dict[str, ArtifactRef]:
    """`champion:NAME` -> the model there that the stage's other inputs have to beat, if there is one.

    Raises StageError where the store has lost it, WrongReference where the ref names other content than it has.
    """
    found = {}
    for item in node.inputs:
        if not item.champion or item.ref is None:
            continue
        own = {made[other.stage].digest for other in node.inputs if other.stage in made}
        entry = champion_of(refs.history(store, item.ref), own)
        if entry is None:
            continue
        if pointed(store, entry) is None:
            raise StageError(
                f"the champion, entry {entry.number} of {item.ref} ({entry.kind} {entry.key[:12]}), is no longer "
                "in the store",
                where=f"stages.{node.name}.{node.stage.kind}.{item.path}",
                hint=f"Point it to one that is: forgeline rollback {item.ref}, or forgeline promote.",
            )
        found[item.stage] = entry.artifact
    return found


def began_from(node: StageNode, resolved: Resolved, store: Store) -> dict[str, ArtifactRef]:
    """`ref:NAME` -> what the stage had for it when, all else equal, it made what the ref leads to, or led to lately.

    Empty where none of that was made by this very stage. Else a model that was trained from the champion's weights and
    became champion would be trained again, from itself, by every run on the same data; and once it was rolled back,
    from what stands there now.
    """
    of_refs = {item.path: item for item in resolved.items if item.ref and not item.champion}
    asked = _apart_from(resolved.identity, of_refs)
    for item in of_refs.values():
        assert item.ref is not None
        for past in dict.fromkeys(entry.artifact for entry in refs.history(store, item.ref)[:REMEMBERED]):
            for one in _made_of(store, past, item.stage):
                if one.kind == node.stage.kind and _apart_from(one.identity, of_refs) == asked:
                    return {item.stage: _given(one, item) for item in of_refs.values()}
    return {}


def _made_of(store: Store, artifact: ArtifactRef, ref: str) -> Iterator[Manifest]:
    """The artifact and what it was made of, nearest first, up to where it began from what `ref` led to then."""
    waiting, seen = [(artifact.kind, artifact.key)], set[str]()
    for kind, key in waiting:
        manifest = None if key in seen else store.manifest(kind, key)
        seen.add(key)
        if manifest is not None:
            yield manifest
            given = [one for items in manifest.inputs.values() for one in items if one["stage"] != ref]
            waiting += [(one["kind"], one["key"]) for one in given]


def _apart_from(identity: dict[str, Any], paths: Collection[str]) -> dict[str, Any]:
    """The identity, whatever the inputs at `paths` were."""
    inputs = [{"field": one["field"]} if one["field"] in paths else one for one in identity.get("inputs", [])]
    return {**identity, "inputs": inputs}


def _given(made: Manifest, item: InputField) -> ArtifactRef:
    digest = next(one["digest"] for one in made.identity["inputs"] if one["field"] == item.path)
    one = next(one for one in made.inputs[item.field] if one["digest"] == digest)
    return ArtifactRef(one["kind"], one["key"], one["digest"], one["type"])
