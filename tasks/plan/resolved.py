"""A stage whose inputs are known: its identity, its key, and the artifact that may lie under it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infra import refs
from infra.artifacts import ArtifactRef, Manifest
from infra.config_check import did_you_mean
from infra.errors import StageError, StoreError, UsageError, WrongReference
from infra.keys import content_digest, digest
from infra.pointed import pointed
from infra.sources_read import SourceFile
from tasks.pipeline.node import StageNode
from tasks.stage import InputField, identity_params

if TYPE_CHECKING:
    from infra.store import Store


@dataclass(frozen=True)
class Resolved:
    """A stage whose inputs are known: its key, the identity payload the key is the hash of, and the inputs it has."""

    key: str
    identity: dict[str, Any]
    inputs: dict[str, list[ArtifactRef]]
    items: tuple[InputField, ...]
    sources: list[SourceFile] = field(default_factory=list)


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


def _sources(node: StageNode) -> list[SourceFile]:
    """The files a stage reads from outside the store. Raises StageError that names the stage's field."""
    try:
        return node.stage.sources(node.params) if node.stage.sources else []
    except StageError as error:
        place = f"stages.{node.name}.{node.stage.kind}"
        where = f"{place}.{error.where}" if error.where else place
        raise StageError(error.what, where=where, hint=error.hint) from error


def _label(item: Any) -> dict[str, str]:
    """Names that show in the result: of stages in a list, which are distinguished by them, and of a champion's ref."""
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
    """Whether the artifact is a gate's refusal."""
    return node.stage.refuses and not manifest.metrics.get("passed")


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
