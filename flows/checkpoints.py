"""`forgeline checkpoint`: what an unfinished training has saved, and its weights as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from infra.checkpoints import CheckpointStore
from infra.errors import CorruptArtifact, UsageError
from infra.open_store import open_store
from infra.transfer import DamagedFiles
from tasks.plan.plan import make_plan

if TYPE_CHECKING:
    from tasks.pipeline.dag import Pipeline


def checkpoints_of(pipeline: Pipeline, stage: str) -> CheckpointStore:
    """The checkpoints of a stage of this pipeline as it stands. Raises UsageError where it cannot have any."""
    store = open_store(pipeline.store)
    line = next((line for line in make_plan(pipeline, store) if line.node.name == stage), None)
    if line is None:
        raise UsageError(f"no stage {stage!r}", hint=f"Stages: {', '.join(pipeline.stages)}.")
    if line.key is None:
        raise UsageError(f"stage {stage!r} waits for inputs that are not made yet", hint="Run the pipeline first.")
    return CheckpointStore(store, line.node.stage.kind, line.key)


def describe(checkpoints: CheckpointStore) -> str:
    """A line for each step saved."""
    damaged = checkpoints.unreadable()
    lines = [f"step {step}" + (f": {damaged[step]}" if step in damaged else "") for step in checkpoints.steps()]
    return "\n".join(lines) or "no checkpoint: it has not begun, or it has finished"


def export(checkpoints: CheckpointStore, step: int | None, target: Path) -> str:
    """Write the weights after `step` (None: the newest) to `target`; returns a line to print."""
    from tasks.training.checkpoints.consolidate import consolidate

    steps = checkpoints.steps()
    if not steps or (step is not None and step not in steps):
        raise UsageError(
            f"no checkpoint at step {step}" if steps else "no checkpoint",
            hint=f"There are: {', '.join(map(str, steps)) or 'none'}. `checkpoint.permanent_every` makes some stay.",
        )
    try:
        checkpoint = checkpoints.load(steps[-1] if step is None else step)
    except DamagedFiles as error:
        raise CorruptArtifact(
            f"the checkpoint is damaged: {error.what}",
            kind=checkpoints.kind,
            key=checkpoints.key,
            hint="`--step N` takes another one; the pipeline, run again, goes on from the newest that is whole.",
        ) from error
    count = consolidate(checkpoint, target)
    return f"{target}: {count:,} weights after step {checkpoint.step}, for from_pretrained"
