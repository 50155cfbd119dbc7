"""compare: how a dataset differs from another one, with a verdict that a trigger can read.

    drift:
      compare: {data: mails, against: "ref:mails/corpus/latest"}

Leaves `drift.json`: `drifted`, and for each test its size, p-value and what it saw. Metric `drifted` is 1 or 0.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import Field

from infra.errors import StageError
from tasks.stage import Input, InputArtifact, Job, Stage, StageParams


class Sizes(StageParams):
    """How large a difference must be to count, 0 to 1; see `tasks/data/drift/differences.py`."""

    length: float = Field(0.1, ge=0, le=1, description="Largest distance between the distributions of lengths.")
    label: float = Field(0.1, ge=0, le=1, description="Share of examples whose label would have to change.")
    language: float = Field(0.05, ge=0, le=1, description="Share of examples whose language would have to change.")
    vocabulary: float = Field(0.05, ge=0, le=1, description="Share of words that are new, beyond what is expected.")
    words: float = Field(0.05, ge=0, le=1, description="1 - cosine of the mean texts.")
    column: float = Field(
        0.1, ge=0, le=1, description="Distance between the distributions of any column that passes through."
    )


class Params(StageParams):
    """Which datasets are compared and what counts as drift."""

    data: Annotated[str, Input("dataset")] = Field(description="The newer dataset; all splits, or the one named.")
    against: Annotated[str, Input("dataset")] = Field(description="The older one it is compared with.")
    sizes: Sizes = Field(default_factory=lambda: Sizes(), description="How large a difference must be to count.")
    alpha: float = Field(
        0.01, gt=0, lt=1, description="Probability of calling drift what is chance, all tests together."
    )
    sample: int = Field(1000, ge=20, description="Most examples of each dataset that are looked at.")
    seed: int = Field(0, ge=0, description="Of the permutations.")


def run(job: Job[Params]) -> dict[str, float]:
    from tasks.data.drift.differences import differences

    params = job.params
    old, new = _rows(job.input("against"), params), _rows(job.input("data"), params)
    judged = differences(old, new, alpha=params.alpha, sizes=params.sizes.model_dump(), seed=params.seed)
    if not judged:
        raise StageError(
            "the datasets have neither texts, nor labels, nor columns that can be compared",
            where=job.input("data").stage,
        )
    drifted = any(difference.drifted for difference in judged)
    verdict = {
        "drifted": drifted,
        "rows": {"old": _counts(job.input("against")), "new": _counts(job.input("data"))},
        "looked_at": {"old": len(old), "new": len(new)},
        "alpha": params.alpha,
        "sizes": params.sizes.model_dump(),
        "differences": [asdict(difference) for difference in judged],
    }
    if media := sorted({name for given in ("data", "against") for name in _media(job.input(given))}):
        verdict["not_tested"] = [f"what the column {name} shows: only its sizes were compared" for name in media]
    (job.output / "drift.json").write_text(json.dumps(verdict, indent=2) + "\n", encoding="utf-8")
    return {"drifted": float(drifted), **{difference.name: difference.size for difference in judged}}


def _counts(data: InputArtifact) -> dict[str, int]:
    from tasks.data.dataset.layout import describe

    return dict(describe(data.path)["splits"])


def _media(data: InputArtifact) -> list[str]:
    """The columns of images and audio."""
    from tasks.data.dataset.layout import describe
    from tasks.data.reading.typed_columns import MEDIA

    return [name for name, kind in describe(data.path).get("types", {}).items() if kind in MEDIA]


def _rows(data: InputArtifact, params: Params) -> list[dict[str, Any]]:
    """The sampled rows. Raises StageError where there are too few to say anything."""
    from tasks.data.dataset.layout import describe, split_files
    from tasks.data.dataset.new_rows import measured_rows
    from tasks.data.drift.difference import sample

    splits = [data.split] if data.split else list(describe(data.path)["splits"])
    files = [file for split in splits for file in split_files(data.path, split)]
    rows = [row for row, _ in measured_rows(data.path, files)]
    if len(rows) < 20:
        raise StageError(
            f"{len(rows)} examples say nothing about drift", where=data.stage, hint="Compare datasets of 20 or more."
        )
    return sample(rows, params.sample, lambda row: str(row["id"]))


STAGE = Stage(kind="compare", version=3, makes="drift", params=Params, run=run)
