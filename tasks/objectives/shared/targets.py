"""What a text is judged to be, read from the columns of a `dataset`: classes, sets of labels, numbers.

Each reader raises StageError on a value it cannot use, naming the example.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from infra.errors import StageError
from tasks.data.dataset.layout import has_split
from tasks.data.dataset.split import read_split
from tasks.data.plain_values import plain_text

if TYPE_CHECKING:
    from tasks.stage import InputArtifact


def class_numbers(data: InputArtifact, split: str, labels: Sequence[str]) -> list[int]:
    """The class of each example, numbered in the order of `labels`, which are the dataset's in any order."""
    numbers = {label: i for i, label in enumerate(labels)}
    found = read_split(data, split, columns=("label",))["label"]
    unknown = sorted({str(label) for label in found} - numbers.keys())
    if unknown:
        raise StageError(
            f"split {split!r} has a label that dataset.json does not list: {unknown[0]!r}",
            where=data.stage,
            hint=f"Known labels: {', '.join(numbers)}.",
        )
    return [numbers[label] for label in found]


def balanced_class_weights(data: InputArtifact, split: str, labels: Sequence[str]) -> npt.NDArray[np.float32]:
    """n / (C x count) of each of the `labels` [C], counted in the training split or, where there is none, in `split`.

    As scikit-learn's `compute_class_weight("balanced")`. Raises StageError on a class without an example: its weight
    would be infinite.
    """
    source = "train" if has_split(data.path, data.manifest.type, "train") else split
    counts = np.bincount(class_numbers(data, source, labels), minlength=len(labels))
    if not counts.all():
        raise StageError(
            f"split {source!r} has no example of class {labels[int(counts.argmin())]!r}, which cannot be balanced",
            where=data.stage,
            hint="Add examples of it, leave the class out of the dataset's labels, or set class_weights: none.",
        )
    weights: npt.NDArray[np.float32] = (counts.sum() / (len(labels) * counts)).astype(np.float32)
    return weights


def label_names(data: InputArtifact, column: str) -> list[str]:
    """The labels that occur in the training split, sorted: their order numbers them."""
    if not has_split(data.path, data.manifest.type, "train"):
        raise StageError(
            f"the labels of column {column!r} are those of the training split, and there is none",
            where=data.stage,
            hint="Use a dataset that has a split `train`.",
        )
    names = sorted({label for labels in label_sets(data, "train", column) for label in labels})
    if not names:
        raise StageError(
            f"no training example has a label in column {column!r}", where=data.stage, hint="Name another `labels`."
        )
    return names


def label_sets(data: InputArtifact, split: str, column: str) -> list[list[str]]:
    """The labels of each example; [] where it has none."""
    table = read_split(data, split, columns=("id", column))
    return [_labels(data, column, name, text) for name, text in zip(table["id"], table[column], strict=True)]


def label_indicators(data: InputArtifact, split: str, column: str, names: Sequence[str]) -> list[npt.NDArray[np.int8]]:
    """Which of the labels `names` each example has: int8 [C] of 0 and 1."""
    numbers = {label: i for i, label in enumerate(names)}
    found = []
    for labels in label_sets(data, split, column):
        unknown = [label for label in labels if label not in numbers]
        if unknown:
            raise StageError(
                f"split {split!r} has a label that no training example has: {unknown[0]!r}",
                where=data.stage,
                hint=f"Known labels: {', '.join(numbers)}.",
            )
        row = np.zeros(len(numbers), np.int8)
        row[[numbers[label] for label in labels]] = 1
        found.append(row)
    return found


def target_numbers(data: InputArtifact, split: str, column: str) -> list[float]:
    """The number of each example; every one must have a finite one."""
    table = read_split(data, split, columns=("id", column))
    for name, value in zip(table["id"], table[column], strict=True):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            shown = "no value" if value is None else f"{value!r}, which is no finite number,"
            raise StageError(
                f"example {name!r} of split {split!r} has {shown} in column {column!r}",
                where=data.stage,
                hint="Give every row a number; a source's `columns` declares it as float32 or float64.",
            )
    return [float(value) for value in table[column]]


def always_named(counts: Counter[int], examples: int) -> Sequence[int]:
    """Labels a baseline names for every text: those of more than half of the examples, else the commonest."""
    often = sorted(label for label, count in counts.items() if 2 * count > examples)
    return often or [max(sorted(counts), key=lambda label: counts[label])]


def _labels(data: InputArtifact, column: str, name: str, text: object) -> list[str]:
    try:
        found = json.loads(text) if isinstance(text, str) else text
    except ValueError:
        found = text
    if not isinstance(found, list) or not all(isinstance(label, str) for label in found):
        shown = repr(text) if len(repr(text)) <= 40 else f"{repr(text)[:40]}..."
        raise StageError(
            f"column {column!r} of example {name!r} holds no list of labels: {shown}",
            where=data.stage,
            hint='Declare it as `json` in the source\'s `columns`; each row is like ["sport", "news"], [] for none.',
        )
    # One class in two spellings is one class, here as in a dataset's own labels.
    return list(dict.fromkeys(filter(None, map(plain_text, found))))
