"""The train and validation examples of a stage that trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from infra.errors import StageError
from tasks.objectives import Feature, Objective

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tasks.stage import InputArtifact


class Features(NamedTuple):
    """What a training learns from and what it is watched on; `validation` is empty where the data has no such split."""

    train: Sequence[Feature]
    validation: Sequence[Feature]


def train_and_validation(
    objective: Objective, data: InputArtifact, tokenizer: PreTrainedTokenizerFast | None, max_length: int
) -> Features:
    """Raises StageError if the objective cannot read this kind of data or a split is unusable."""
    if data.manifest.type not in objective.data_types:
        raise StageError(
            f"objective {objective.name} cannot learn from {data.manifest.type!r}",
            where=data.stage,
            hint=f"It reads: {', '.join(objective.data_types)}.",
        )
    suffix = "safetensors" if data.manifest.type == "tokens" else "parquet"
    train = objective.features(data, data.split or "train", tokenizer, max_length)
    has_validation = (data.path / f"validation.{suffix}").exists()
    validation = objective.features(data, "validation", tokenizer, max_length) if has_validation else []
    return Features(train, validation)
