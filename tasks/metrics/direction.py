"""Which way a metric is good, by the words of its name."""

from __future__ import annotations

import re

ERRORS = ("loss", "entropy", "perplexity", "bits", "error", "brier", "nll", "ece", "wer", "cer", "mae", "mse", "rmse")
SHORTCOMINGS = ("unfinished", "drop")
COSTS = ("size", "parameters", "memory", "latency")
LESS_IS_BETTER = frozenset({*ERRORS, *SHORTCOMINGS, *COSTS})


def greater_is_better(metric: str) -> bool:
    """False for losses, errors and costs, True for everything else."""
    # What follows an @ is a class, a rank or a batch size, what follows a [ a slice, what stands before a / a task,
    # whatever they are called.
    return LESS_IS_BETTER.isdisjoint(re.split(r"[@\[]", metric, maxsplit=1)[0].rpartition("/")[2].split("_"))
