"""Which split a group belongs to: a hash decides, so adding data never moves an example to another split."""

from __future__ import annotations

import hashlib

from pydantic import Field, model_validator

from tasks.stage import StageParams

SPLITS = ("train", "validation", "test")


class Split(StageParams):
    """How examples are shared out."""

    by: str = Field(
        "file",
        pattern=r"^(file|row|column:.+)$",
        description="What stays together: all rows of a `file`, each `row` alone, or rows equal in `column:NAME`.",
    )
    validation: float = Field(0.1, ge=0, lt=1, description="Share of groups for validation.")
    test: float = Field(0.1, ge=0, lt=1, description="Share of groups for test.")
    frozen: bool = Field(
        True,
        description="Of duplicates in two splits the held-out one stays (test, then validation, then train), "
        "so that no training data added later can take an example out of the test set.",
    )
    seed: int = Field(0, ge=0, description="Another seed is another assignment.")

    @model_validator(mode="after")
    def _leaves_training_data(self) -> Split:
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must leave something to train on")
        return self


def split_of(group: str, split: Split) -> str:
    """`train`, `validation` or `test`: a pure function of the group's name, the shares and the seed."""
    point = int.from_bytes(hashlib.sha256(f"{split.seed}:{group}".encode("utf-8", "surrogatepass")).digest()[:8])
    share = point / 2**64
    if share < split.test:
        return "test"
    return "validation" if share < split.test + split.validation else "train"


def priority(split: str, settings: Split) -> int:
    """Order in which duplicates are kept: lower wins."""
    return -SPLITS.index(split) if settings.frozen else 0
