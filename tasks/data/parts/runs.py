"""The runs of words of evaluation sets, a part for each of their files: what decontamination looks for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.artifacts import Manifest
from infra.errors import StageError
from infra.store import Store
from tasks.data.dataset.layout import iterate_columns, stored_files
from tasks.data.parts.parts import artifact_file, artifact_location, make_parts
from tasks.data.selection.decontamination import Decontaminate, runs
from tasks.stage import PartKind, PartSpec

if TYPE_CHECKING:
    from tasks.stage import Job

KIND = PartKind("runs", "tasks.data.parts.runs:runs_of_file")
VERSION = 3
HELD_OUT = ("validation", "test")


def known_runs(job: Job[Any], settings: Decontaminate | None) -> list[Manifest]:
    """Parts with the runs of the datasets in `decontaminate.against`: of the split named, or of what is held out.

    A benchmark is often one table that nobody meant to split, and then lies in `train` as a whole: where nothing is
    held out all of it is taken, with a warning. Raises StageError on a split named that has no row.
    """
    if settings is None:
        return []
    specs = []
    for item in job.inputs["decontaminate.against"]:
        files = stored_files(item.manifest, [item.split] if item.split else HELD_OUT)
        if not files and item.split:
            raise StageError(
                f"{item.stage}.{item.split} has no row, so nothing would be looked for",
                where="decontaminate.against",
                hint=f"Name another split, or `{item.stage}` for all that is held out.",
            )
        if not files:
            files = stored_files(item.manifest)
            job.warn(
                f"decontaminate: all rows of {item.stage} are in train, so every one of them counts as a benchmark's; "
                f"write `{item.stage}.train` if that is meant, else give it a test split"
            )
        for _, entry in files:
            identity = {"version": VERSION, "file": entry.sha256, "ngram": settings.ngram}
            arguments = {"file": artifact_location(item.manifest, entry.path), "ngram": settings.ngram}
            specs.append(PartSpec(identity, arguments, entry.size))
    return make_parts(KIND, specs, job.store, workers=job.cores, scratch=job.scratch).parts


def runs_of_file(arguments: dict[str, Any], folder: Path, store: Store) -> dict[str, float]:
    """Write `runs.safetensors`: `runs`, the sorted hashes of all runs of words in the file's texts, uint64."""
    from safetensors.numpy import save_file

    found = [np.zeros(0, np.uint64)]
    for batch in iterate_columns([artifact_file(arguments["file"], store)], ["text"]):
        found.append(runs(batch["text"], arguments["ngram"])[0])
    save_file({"runs": np.unique(np.concatenate(found))}, folder / "runs.safetensors")
    return {}
