"""Columns of one split of a `dataset` artifact, as Python values, and its labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from infra.errors import StageError
from tasks.data.dataset.rows import open_split

if TYPE_CHECKING:
    from tasks.stage import InputArtifact


def read_split(data: InputArtifact, split: str, *, columns: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of one split in frozen order. Raises StageError if the split or a column is missing, or it is empty."""
    rows = open_split(data, split, columns)
    return {name: rows.column(name) for name in columns}


def read_texts(data: InputArtifact, split: str, column: str) -> list[str]:
    """A column of texts. Raises StageError where one is missing or empty, naming its example."""
    table = read_split(data, split, columns=tuple(dict.fromkeys(("id", column))))
    for name, text in zip(table["id"], table[column], strict=True):
        if not isinstance(text, str) or not text.strip():
            raise StageError(
                f"example {name!r} of split {split!r} has no text in column {column!r}",
                where=data.stage,
                hint="Give every row one, or leave the row out of the source.",
            )
    return table[column]


def dataset_labels(data: InputArtifact) -> list[str]:
    """The label set of a `dataset`, in the order that numbers the classes; StageError if there are under two."""
    labels = json.loads((data.path / "dataset.json").read_text(encoding="utf-8")).get("labels")
    if not labels:
        raise StageError("the dataset has no labels", where=data.stage, hint="Give its dataset stage a `label`.")
    if len(labels) < 2:
        raise StageError(
            f"the label set has one class, {labels[0]!r}",
            where=data.stage,
            hint="A classifier needs at least two labels.",
        )
    return [str(label) for label in labels]
