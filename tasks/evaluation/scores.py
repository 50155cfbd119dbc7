"""What was measured, as `scores.json`; and the examples models get wrong, for people to look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from infra.errors import StageError
from tasks.evaluation.slices import Masks, slice_name
from tasks.metrics.bootstrap import interval
from tasks.metrics.direction import greater_is_better
from tasks.models.files import shipped_bytes

if TYPE_CHECKING:
    from tasks.evaluation.measured import Measured
    from tasks.objective import Objective
    from tasks.stage import InputArtifact

Arrays = Mapping[str, npt.NDArray[Any]]
SNIPPET = 400


def scores_of(
    objective: Objective,
    artifacts: Mapping[str, InputArtifact],
    measured: Mapping[str, Measured],
    masks: Masks,
) -> dict[str, Any]:
    """scores.json without its `data` and `baselines`; `n` is the number of examples. Undefined numbers are null."""
    sizes = {slice_name(by, one): int(mask.sum()) for by, slices in masks.items() for one, mask in slices.items()}
    n = len(next(iter(next(iter(measured.values())).predictions.values())))
    models = {}
    for name, found in measured.items():
        metrics = {
            m: estimate(
                value,
                found.replicates[m],
                next((size for name, size in sizes.items() if m.endswith(name)), n),
                higher_is_better=higher_is_better(objective, m),
            )
            for m, value in found.point.items()
        }
        models[name] = {
            **about_model(artifacts[name], metrics, found.parameters),
            "latency_ms": {str(size): _quantiles(times) for size, times in found.latency_ms.items()},
            "peak_memory_mb": round(found.peak_memory_mb, 2),
        }
        if (counts := confusion(found.predictions)) is not None:
            models[name]["confusion"] = counts
    return {
        "objective": objective.name,
        "primary_metric": objective.primary_metric,
        "greater_is_better": objective.greater_is_better,
        "n": n,
        "models": models,
    }


def require_distinct(models: Sequence[InputArtifact]) -> None:
    """Scores are kept by the models' names. Raises StageError on one that is listed twice."""
    names = [model.stage for model in models]
    if len(set(names)) < len(names):
        raise StageError("a model is listed twice", where="models", hint="Name each stage once.")


def about_model(artifact: InputArtifact, metrics: Mapping[str, Any], parameters: int) -> dict[str, Any]:
    """What any stage that scores models says of one: which it is, its metrics (see `estimate`), how large it is."""
    manifest = artifact.manifest
    return {
        "type": manifest.type,
        "artifact": {"kind": manifest.kind, "key": manifest.key, "digest": manifest.digest, "type": manifest.type},
        "metrics": dict(metrics),
        "parameters": parameters,
        "size_mb": shipped_bytes(artifact.path) / 1e6,
    }


def higher_is_better(objective: Objective, metric: str) -> bool:
    """Whether more of a metric is better, of all examples or of a slice."""
    primary = metric.partition("[")[0] == objective.primary_metric
    return objective.greater_is_better if primary else greater_is_better(metric)


def estimate(value: float, drawn: npt.NDArray[np.float64], n: int, *, higher_is_better: bool | None) -> dict[str, Any]:
    """A metric with its 95 % interval; drawn: [R] its values on the resamples of n examples.

    higher_is_better: whether more is better; None where neither more nor less is.
    """
    low, high = interval(drawn)
    return {
        "value": _finite(value),
        "low": _finite(low),
        "high": _finite(high),
        "n": n,
        "greater_is_better": higher_is_better,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _quantiles(times: list[float]) -> dict[str, float]:
    low, p50, high, p95, p99 = (float(q) for q in np.quantile(times, [0.25, 0.5, 0.75, 0.95, 0.99]))
    found = {"p50": p50, "p95": p95, "p99": p99, "spread": (high - low) / p50}
    return {**{name: round(value, 4) for name, value in found.items()}, "n": len(times)}


def confusion(predictions: Arrays) -> list[list[int]] | None:
    """Counts [truth][guess] where the predictions are one label and C logits an example, else None."""
    labels, logits = predictions.get("labels"), predictions.get("logits")
    if labels is None or logits is None or labels.ndim != 1 or logits.ndim != 2:
        return None
    size = logits.shape[1]
    cells = np.bincount(labels.astype(np.int64) * size + logits.argmax(1), minlength=size * size)
    counts: list[list[int]] = cells.reshape(size, size).tolist()
    return counts


def misclassified(
    predictions: Mapping[str, Arrays],
    ids: list[str],
    texts: list[str],
    labels: list[str] | None,
    limit: int,
    pictures: Callable[[list[int]], list[str | None]] = lambda places: [None] * len(places),
) -> list[dict[str, Any]]:
    """Up to `limit` examples, spread over the split, that some model gets wrong: text, truth, each model's answer.

    pictures: what examples at these places look like, for those that have more to show than a text.

    Those on which models disagree come first: they say what a smaller model lost.
    """
    usable = {name: p for name, p in predictions.items() if confusion(p) is not None}
    if not usable:
        return []
    truth = next(iter(usable.values()))["labels"]
    guesses = {name: p["logits"].argmax(1) for name, p in usable.items()}
    table = np.stack(list(guesses.values()))
    wrong = (table != truth).any(0)
    split = wrong & (table != table[0]).any(0)
    chosen: list[int] = []
    for group in (np.flatnonzero(split), np.flatnonzero(wrong & ~split)):
        room = min(limit - len(chosen), len(group))
        chosen += [int(i) for i in group[np.linspace(0, len(group) - 1, room).astype(int)]] if room else []
    return [
        {
            "id": ids[i],
            "text": texts[i][:SNIPPET],
            **({"picture": picture} if picture else {}),
            "truth": _name(labels, truth[i]),
            "predictions": {name: _name(labels, guess[i]) for name, guess in guesses.items()},
        }
        for i, picture in zip(chosen, pictures(chosen), strict=True)
    ]


def _name(labels: list[str] | None, number: Any) -> str:
    return labels[int(number)] if labels else str(int(number))
