"""A `Job` made by hand, so that a stage can be run without a flow: real store, real checkpoints, no processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.artifacts import Manifest
from infra.checkpoints import CheckpointStore
from infra.execution import Execution
from infra.keys import digest
from infra.open_store import open_store
from infra.tracking import NullTracker
from tasks.stage import InputArtifact, Job, StageParams, stages


def artifact(path: Path, type: str, *, stage: str = "source", split: str | None = None) -> InputArtifact:
    """An input whose payload lies in `path`."""
    manifest = Manifest(
        kind=type, type=type, key="0" * 64, attempt="a", digest="0" * 64, payload=[], records=[], identity={}
    )
    return InputArtifact(stage, path, manifest, split)


def stored(store: Path, folder: Path, type: str, *, stage: str = "source", split: str | None = None) -> InputArtifact:
    """An input whose files are committed in the store at `store`, for stages that fetch what they need by themselves."""
    opened = open_store(str(store))
    key = digest({"folder": str(folder)})
    manifest = opened.commit(kind=type, type=type, key=key, attempt="a", payload_dir=folder, identity={})
    return InputArtifact(stage, opened.fetch(manifest), manifest, split)


def collect(job: Job[Any]) -> None:
    """Put the files a stage left in the store beside those it wrote, as a commit and a fetch would."""
    for entry in job.shared:
        target = job.output / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(job.fetch_shared(entry.path), target)


def run_stage(folder: Path, kind: str, given: dict[str, Any], **inputs: Any) -> dict[str, float]:
    """Run a stage of that kind by hand; its payload is in `folder/output`, its evidence in `folder/records`."""
    stage = stages()[kind]
    made = make_job(folder, stage.params.model_validate(given), inputs, name=folder.name)
    metrics: dict[str, float] = stage.run(made)
    return metrics


def make_job(
    folder: Path,
    params: StageParams,
    inputs: dict[str, InputArtifact | list[InputArtifact]] | None = None,
    *,
    name: str = "stage",
    execution: dict[str, Any] | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
    progress: Callable[..., None] = lambda *args, **values: None,
    rank: int = 0,
    world_size: int = 1,
    store: Path | None = None,
    micro: int = 0,
    previous: Manifest | None = None,
) -> Job[Any]:
    """A job whose output, records and scratch lie in `folder`. Two jobs with the same `store` share checkpoints."""
    for part in ("output", "records", "scratch"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    given = {k: v if isinstance(v, list) else [v] for k, v in (inputs or {}).items()}
    return Job(
        name=name,
        params=params,
        inputs=given,
        output=folder / "output",
        records=folder / "records",
        scratch=folder / "scratch",
        execution=Execution.model_validate(execution or {}),
        progress=progress,
        tracker=NullTracker(),
        # Whoever launches a job has written into its store before: processes of the job wait for one that is not there.
        checkpoints=CheckpointStore(open_store(str(store or folder / "store"), probe=True), "kind", "0" * 64),
        stop_requested=stop_requested,
        rank=rank,
        world_size=world_size,
        micro=micro,
        previous=previous,
    )
