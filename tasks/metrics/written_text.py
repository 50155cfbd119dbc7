"""Scores of written texts against references, for many weightings of the same examples at once.

Each metric keeps numbers of every example, of which the score of any weighting is made. BLEU (Papineni et al., 2002)
and chrF (Popović, 2015) are scores of a corpus, not means: their counts are summed by weight, and sacrebleu makes the
score of the sums, so that a bootstrap replicate is what sacrebleu says of the resampled corpus. Both run from 0 to 100,
with sacrebleu's defaults (BLEU: tokenizer 13a, exponential smoothing; chrF2). ROUGE (Lin, 2004) is rouge-score's F1
without stemming, whose words are the letters a to z and digits; exact match and F1 are those of SQuAD. These are means,
from 0 to 1.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from infra.errors import StageError

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

Array = npt.NDArray[np.float64]
Statistics = dict[str, npt.NDArray[Any]]
TextMetric = Literal["exact_match", "token_f1", "bleu", "chrf", "rouge1", "rouge2", "rougeL"]
CORPUS = ("bleu", "chrf")
LENGTHS = ("output_characters", "reference_characters")
PACKAGES = {"bleu": "sacrebleu", "chrf": "sacrebleu", "rouge1": "rouge_score", "rouge2": "rouge_score"}
PACKAGES["rougeL"] = "rouge_score"


def require_packages(metrics: Sequence[str]) -> None:
    """Raises StageError where a metric's package is not installed, before any text is written for it."""
    for metric in metrics:
        try:
            importlib.import_module(PACKAGES.get(metric, "math"))
        except ImportError as error:
            free = ", ".join(name for name in get_args(TextMetric) if name not in PACKAGES)
            raise StageError(
                f"{PACKAGES[metric].replace('_', '-')} is not installed, and `{metric}` is counted by it",
                where="metrics",
                hint=f"pip install 'forgeline[text]', or set `metrics` to some of: {free}.",
            ) from error


def text_statistics(outputs: Sequence[str], references: Sequence[str], metrics: Sequence[str]) -> Statistics:
    """One row an example: int64 [N, 10] for `bleu` and [N, 18] for `chrf`, float64 [N] for the others, lengths [N]."""
    from tasks.metrics.squad import exact_match, token_f1

    pairs = list(zip(outputs, references, strict=True))
    found: Statistics = {
        "output_characters": np.array([len(output) for output, _ in pairs], np.int64),
        "reference_characters": np.array([len(reference) for _, reference in pairs], np.int64),
    }
    rouge = [metric for metric in metrics if metric.startswith("rouge")]
    scorer = _rouge(rouge) if rouge else None
    scored = [scorer.score(reference, output) for output, reference in pairs] if scorer else []
    for metric in metrics:
        if metric in CORPUS:
            counted = _corpus_metric(metric)._extract_corpus_statistics(list(outputs), [list(references)])
            found[metric] = np.array(counted, np.int64)
        elif metric in rouge:
            found[metric] = np.array([score[metric].fmeasure for score in scored], np.float64)
        else:
            score = exact_match if metric == "exact_match" else token_f1
            found[metric] = np.array([score(output, reference) for output, reference in pairs], np.float64)
    return found


def text_metrics(statistics: Mapping[str, npt.NDArray[Any]], weights: Array) -> dict[str, Array]:
    """Metric name -> [R], under example weights [R, N].

    `length_ratio`: characters of all outputs over those of all references. Any other [N] array is averaged: whoever
    adds a figure of each example (`unfinished`) has its mean.
    """
    found = {}
    for name, values in statistics.items():
        if name in CORPUS:
            metric, sums = _corpus_metric(name), weights @ values.astype(np.float64)
            found[name] = np.array([metric._compute_score_from_stats(row).score for row in sums.tolist()], np.float64)
        elif name not in LENGTHS:
            found[name] = (weights @ values.astype(np.float64)) / weights.sum(1)
    written, wanted = (weights @ statistics[name].astype(np.float64) for name in LENGTHS)
    return {**found, "length_ratio": written / wanted}


def _corpus_metric(name: str) -> Any:
    import sacrebleu

    return sacrebleu.BLEU() if name == "bleu" else sacrebleu.CHRF()


def _rouge(metrics: Sequence[str]) -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(metrics))
