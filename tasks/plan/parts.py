"""Which parts a stage of a pipeline will ask for, found out without running it."""

from __future__ import annotations

import os
from pathlib import Path

from infra.artifacts import ArtifactRef
from infra.checkpoints import CheckpointStore
from infra.errors import ForgelineError
from infra.store import Store
from infra.tracking import NullTracker
from tasks.data.parts.parts import input_manifest
from tasks.pipeline.node import StageNode
from tasks.stage import InputArtifact, Job, PartKind, PartSpec


def parts_of(
    node: StageNode, made: dict[str, ArtifactRef], store: Store, scratch: Path
) -> tuple[PartKind, list[PartSpec]]:
    """The parts of a stage that has any. `made`: the artifacts of the stages and refs it names, which lie in the store.

    Raises StageError where its sources cannot be read, as the stage itself would.
    """
    assert node.stage.parts is not None and node.stage.lazy, "its inputs are not fetched"
    inputs: dict[str, list[InputArtifact]] = {}
    for item in node.inputs:
        ref = made[item.stage]
        artifact = InputArtifact(item.stage, Path(os.devnull), input_manifest(ref.kind, ref.key, store), item.split)
        inputs.setdefault(item.field, []).append(artifact)
    job = Job(
        name=node.name,
        params=node.params,
        inputs=inputs,
        output=scratch,
        records=scratch,
        scratch=scratch,
        execution=node.execution,
        progress=lambda step, total, **values: None,
        tracker=NullTracker(),
        checkpoints=CheckpointStore(store, node.stage.kind, key=""),
        stop_requested=lambda: False,
        version=node.stage.version,
    )
    try:
        return node.stage.parts(job)
    except ForgelineError as error:
        raise error.within(f"stage {node.name}") from error.__cause__
