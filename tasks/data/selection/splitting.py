"""Which split a group belongs to: a hash decides, so adding data never moves an example to another split."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from tasks.data.hashing import Hashes
from tasks.stage import StageParams

SPLITS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)
Codes = npt.NDArray[np.int8]


class Split(StageParams):
    """How examples are shared out."""

    by: str = Field(
        "file",
        pattern=r"^(file|row|column:.+)$",
        description="What stays together: all rows of a `file`, each `row` alone, or rows equal in `column:NAME`.",
    )
    validation: float = Field(0.1, ge=0, lt=1, description="Share of groups for validation.")
    test: float = Field(0.1, ge=0, lt=1, description="Share of groups for test.")
    stratify: bool = Field(
        False,
        description="Give each label its exact share of every split. What is added later can then move old examples.",
    )
    frozen: bool = Field(
        True,
        description="Of duplicates in two splits the held-out one stays (test, then validation, then train), and a run "
        "that would change or lose an example of the last test split is refused.",
    )
    test_version: int = Field(1, ge=1, description="Raise it to begin a new test split; the old one no longer binds.")
    seed: int = Field(
        0,
        ge=0,
        description="Another seed is another assignment; a split of another stage is only split again with one.",
    )

    @model_validator(mode="after")
    def _leaves_training_data(self) -> Split:
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must leave something to train on")
        return self

    @property
    def column(self) -> str | None:
        """The column whose values are groups."""
        return self.by.partition(":")[2] or None

    @property
    def not_empty(self) -> list[str]:
        """The splits that get a share."""
        return ["train", *(["validation"] if self.validation else []), *(["test"] if self.test else [])]


def point_of(group: str, seed: int) -> int:
    """Where a group falls among all, 0 to 2^64 - 1: a pure function of its name and the seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode("utf-8", "surrogatepass")).digest()[:8])


def split_of(group: str, split: Split) -> str:
    """`train`, `validation` or `test`: a pure function of the group's name, the shares and the seed."""
    return SPLITS[int(assign(np.array([point_of(group, split.seed)], np.uint64), split)[0])]


def assign(points: Hashes, split: Split) -> Codes:
    """Split code of each point, by the shares."""
    share = points.astype(np.float64) / 2**64
    codes = np.full(len(points), TRAIN, np.int8)
    codes[share < split.test + split.validation] = VALIDATION
    codes[share < split.test] = TEST
    return codes


def assign_stratified(points: Hashes, labels: npt.NDArray[np.int32], split: Split) -> Codes:
    """Split code of each row such that every label has its share of groups in each split, to the nearest group.

    points: equal for rows of one group. A group counts for the label most of its rows have (the first of equals).
    """
    codes = np.full(len(points), TRAIN, np.int8)
    groups, place = np.unique(points, return_inverse=True)
    counts = np.zeros((len(groups), int(labels.max(initial=0)) + 1), np.int64)
    np.add.at(counts, (place, labels), 1)
    of_group = counts.argmax(axis=1)
    group_codes = np.full(len(groups), TRAIN, np.int8)
    for label in range(counts.shape[1]):
        members = np.flatnonzero(of_group == label)  # by point, because `groups` is sorted
        test = round(split.test * len(members))
        held_out = round((split.test + split.validation) * len(members))
        group_codes[members[:held_out]] = VALIDATION
        group_codes[members[:test]] = TEST
    codes[:] = group_codes[place]
    return codes
