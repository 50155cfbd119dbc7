"""Metrics of tagged words, from counts of each example: of tags (parts of speech), or of spans that BIO tags spell.

Counts are sums over words or spans, so every metric is a ratio of matrix products with the example weights. Spans are
read from tags as seqeval's default mode reads them (Nakayama, 2018, after CoNLL-2000's conlleval): an I- that follows
no word of its type begins a span. With ones as weights all equal `seqeval.metrics` with zero_division=0, or for plain
tags scikit-learn's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
OUTSIDE = "O"


def span_types(labels: Sequence[str]) -> list[str]:
    """Types of the spans that tags `B-<type>` and `I-<type>` spell, sorted."""
    return sorted({label[2:] for label in labels if label != OUTSIDE})


def is_bio(label: str) -> bool:
    """Whether a tag is `O`, `B-<type>` or `I-<type>`."""
    return label == OUTSIDE or (label[:2] in ("B-", "I-") and len(label) > 2)


def continuations(labels: Sequence[str]) -> list[int]:
    """For each tag the number of the one that goes on with it: after `B-<type>` `I-<type>`, if there is one."""
    numbers = {label: i for i, label in enumerate(labels)}
    return [numbers.get(f"I-{label[2:]}", i) if label.startswith("B-") else i for label, i in numbers.items()]


def spans(tags: Integers, labels: Sequence[str]) -> tuple[Integers, Integers]:
    """Where spans begin: types [B, W] (numbers in `span_types`, -1 where none begins), and ends [B, W], exclusive.

    tags: [B, W] in range(len(labels)); below 0 is no word, which no span goes over.
    """
    types = span_types(labels)
    type_of = np.array([*(-1 if label == OUTSIDE else types.index(label[2:]) for label in labels), -1])
    begins = np.array([*(label.startswith("B-") for label in labels), False])
    known = np.where(tags >= 0, tags, len(labels))
    kind, start = type_of[known], begins[known]
    before = np.pad(kind, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    start = (kind >= 0) & (start | (kind != before))
    # A span goes on to the next word that is outside or begins another: the nearest such place, seen from the right.
    width = tags.shape[1]
    stops = np.where(start | (kind < 0), np.arange(width), width)
    nearest = np.minimum.accumulate(stops[:, ::-1], axis=1)[:, ::-1]
    ends = np.pad(nearest, ((0, 0), (0, 1)), constant_values=width)[:, 1:]
    return np.where(start, kind, -1), ends.astype(np.int64)


def marked(words: Sequence[str], tags: Sequence[int], labels: Sequence[str], *, bio: bool) -> str:
    """A text with its tags for people: `[Ada Lovelace](PER) wrote`, or `Ada/NNP wrote/VBD`; tag -1 is none."""
    if not bio:
        return " ".join(f"{word}/{labels[tag] if tag >= 0 else '?'}" for word, tag in zip(words, tags, strict=True))
    kinds, ends = spans(np.asarray([tags], np.int64), labels)
    shown, types = list(words), span_types(labels)
    for start in np.flatnonzero(kinds[0] >= 0).tolist():
        shown[start] = f"[{shown[start]}"
        shown[ends[0, start] - 1] += f"]({types[kinds[0, start]]})"
    return " ".join(shown)


def span_counts(truth: Integers, guesses: Integers, labels: Sequence[str]) -> dict[str, Integers]:
    """Spans of each example by type, [B, number of types] each: `true`, `guessed`, and `right`, which are both."""
    (true, true_ends), (guessed, guessed_ends) = spans(truth, labels), spans(guesses, labels)
    same = (true >= 0) & (true == guessed) & (true_ends == guessed_ends)
    size = len(span_types(labels))
    return {
        "true": _by_number(true, size),
        "guessed": _by_number(guessed, size),
        "right": _by_number(np.where(same, true, -1), size),
    }


def tag_counts(truth: Integers, guesses: Integers, size: int) -> dict[str, Integers]:
    """Words of each example by tag, [B, size] each: `true`, `guessed`, and `right`, which are both. -1: no tag."""
    return {
        "true": _by_number(truth, size),
        "guessed": _by_number(guesses, size),
        "right": _by_number(np.where(truth == guesses, truth, -1), size),
    }


def word_counts(truth: Integers, guesses: Integers) -> dict[str, Integers]:
    """Of each example [B]: `words`, and how many are `correct`. truth: below 0 where there is no word."""
    return {"words": (truth >= 0).sum(1), "correct": ((truth >= 0) & (truth == guesses)).sum(1)}


def tagging_metrics(
    counts: Mapping[str, npt.NDArray[Any]], names: Sequence[str], weights: Array, prefix: str
) -> dict[str, Array]:
    """Metric name -> [R]: accuracy over words; micro (spans only) and macro averages, F1 of each class `f1@<name>`.

    counts: of `word_counts` [N], and of `span_counts` or `tag_counts` [N, K]; names: of the K types or tags; weights:
    [R, N]. Macro averages run over what occurs, as truth or as guess, under that weighting.
    """
    true, guessed, right = (weights @ counts[name].astype(np.float64) for name in ("true", "guessed", "right"))
    occurs = (true + guessed) > 0
    found = {"accuracy": _ratio(weights @ counts["correct"], weights @ counts["words"])}
    if prefix:  # over all words micro F1 is the accuracy
        found[f"{prefix}precision"] = _ratio(right.sum(1), guessed.sum(1))
        found[f"{prefix}recall"] = _ratio(right.sum(1), true.sum(1))
        found[f"{prefix}f1"] = _ratio(2 * right.sum(1), (true + guessed).sum(1))
    by_class = _ratio(2 * right, true + guessed)
    for name, values in (
        ("precision", _ratio(right, guessed)),
        ("recall", _ratio(right, true)),
        ("f1", by_class),
    ):
        found[f"{prefix}{name}_macro"] = _ratio((values * occurs).sum(1), occurs.sum(1))
    return found | {f"f1@{name}": by_class[:, k] for k, name in enumerate(names)}


def _by_number(numbers: Integers, size: int) -> Integers:
    """How often each of range(size) stands in each row of [B, W], as [B, size]."""
    rows = np.arange(len(numbers))[:, None]
    cells = (rows * size + numbers)[numbers >= 0]
    return np.bincount(cells, minlength=len(numbers) * size).reshape(len(numbers), size).astype(np.int64)


def _ratio(numerator: npt.NDArray[Any], denominator: npt.NDArray[Any]) -> Array:
    found: Array = np.zeros(np.shape(numerator), np.float64)
    np.divide(numerator, denominator, out=found, where=np.asarray(denominator) > 0)
    return found
