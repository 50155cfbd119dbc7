"""Scores of predicted tokens: by which masked and sequence-to-sequence language models are judged."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from tasks.losses.cross_entropy import IGNORED

Array = npt.NDArray[np.float64]


def token_scores(logits: npt.NDArray[np.floating], labels: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.generic]]:
    """One row an example, from logits [B, T, V] and labels [B, T] (-100: not counted).

    `nll`: float64 [B], summed negative log-likelihood in nats; `tokens`: int64 [B], how many it sums over; `correct`:
    int64 [B], how many of them are the likeliest token.
    """
    rows, places = np.nonzero(labels != IGNORED)
    scores = torch.from_numpy(np.ascontiguousarray(logits[rows, places], np.float32))
    targets = torch.from_numpy(np.ascontiguousarray(labels[rows, places], np.int64))
    nll = torch.nn.functional.cross_entropy(scores, targets, reduction="none").double().numpy()
    hits = (scores.argmax(-1) == targets).numpy() if len(rows) else np.zeros(0)
    count = len(labels)
    return {
        "nll": np.bincount(rows, nll, count),
        "tokens": np.bincount(rows, minlength=count),
        "correct": np.bincount(rows, hits, count).astype(np.int64),
    }


def likeliest(logits: npt.NDArray[np.floating], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The likeliest token at each place that is counted, [U], from logits [B, T, V] and labels [B, T]."""
    found: npt.NDArray[np.int64] = logits[labels != IGNORED].argmax(-1)
    return found


def token_metrics(predictions: Mapping[str, npt.NDArray[np.generic]], weights: Array) -> dict[str, Array]:
    """Metric name -> [R], under example weights [R, N]: nats a token, its exponential, the share of right tokens.

    With `bytes` [N], the length of each text that was predicted, also bits a byte, which does not depend on how a
    tokenizer cuts it. Masked tokens and corrupted spans have none: which bytes are hidden depends on the tokenizer, so
    that the figure would compare nothing. nan where no token is counted.
    """
    nll, tokens, correct = (weights @ predictions[name].astype(np.float64) for name in ("nll", "tokens", "correct"))
    with np.errstate(invalid="ignore", divide="ignore"):
        nats = nll / tokens
        found = {"cross_entropy": nats, "perplexity": np.exp(nats), "accuracy": correct / tokens}
        if "bytes" in predictions:
            found["bits_per_byte"] = nll / (weights @ predictions["bytes"].astype(np.float64)) / math.log(2)
    return found


def unigram_nats(seen: npt.NDArray[np.integer], targets: npt.NDArray[np.integer]) -> float:
    """Nats a token of `targets` under the add-half frequencies of `seen`: what a model must beat. nan for no target."""
    if not len(targets):
        return math.nan
    size = 1 + int(max(seen.max(initial=0), targets.max()))
    counts = np.bincount(seen, minlength=size) + 0.5
    return float(-np.log(counts[targets] / counts.sum()).mean())
