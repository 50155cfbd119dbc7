"""Several models on the same frozen examples: everything that is measured, in the order that disturbs it least.

1. predictions and memory, a few models at a time (each is single-threaded);
2. latency, one model at a time, in rounds that go over all models, so that a noisy minute hits them all;
3. metrics with their bootstrap, samples and baselines, a few models at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.errors import StageError
from infra.launch.forked import Forked, forked
from tasks.evaluation.evaluated_model import EvaluatedModel
from tasks.evaluation.measured import Measured
from tasks.evaluation.slices import Masks

if TYPE_CHECKING:
    from tasks.objective import Augmentation
    from tasks.stage import InputArtifact

ROUNDS = 5
BASELINES = "baselines"


@dataclass(frozen=True)
class Timing:
    """How latency is measured. budget_ms: a model's time at one batch size after which it is not repeated further."""

    batch_sizes: tuple[int, ...]
    repeats: int
    threads: int
    budget_ms: float


def compare(
    models: list[InputArtifact],
    data: InputArtifact,
    split: str,
    *,
    timing: Timing,
    resamples: int,
    seed: int,
    cores: int,
    has_train: bool,
    masks: Masks,
    perturbations: Mapping[str, Augmentation],
    labels: list[str] | None,
    progress: Callable[[int, int], None],
) -> tuple[dict[str, Measured], dict[str, float]]:
    """(model name -> what was measured, baselines). Raises StageError if two models saw different examples.

    labels: the classes in the order that numbers them for all models, whatever each one's own order is.
    """
    make: dict[str, Callable[[], Any]] = {
        model.stage: partial(EvaluatedModel, model, data, split, timing.threads, masks, perturbations, seed, labels)
        for model in models
    }
    steps, done = len(models) * 3, 0
    extra = {BASELINES: make[models[0].stage]} if has_train else {}
    with forked({**make, **extra}) as children:
        subjects = {name: children[name] for name in make}
        if extra:
            children[BASELINES].start("baselines")
        measured: dict[str, Measured] = {}

        def measure(child: Forked) -> None:
            sizes = child.call("load")
            predictions = child.call("predict")
            measured[child.name] = Measured(predictions, sizes["parameters"], child.call("peak_memory"))

        for wave in _waves(list(subjects.values()), cores):
            _together(wave, measure)
            done += len(wave)
            progress(done, steps)
        baselines = children[BASELINES].result() if extra else {}
        _same_examples(measured)
        for name, times in _latency(subjects, timing).items():
            measured[name].latency_ms = times
        done += len(models)
        progress(done, steps)

        def score(child: Forked) -> None:
            found = measured[child.name]
            found.point, found.replicates = child.call("score", resamples, seed)
            found.samples = child.call("samples")

        for wave in _waves(list(subjects.values()), cores):
            _together(wave, score)
            done += len(wave)
            progress(done, steps)
        return {name: measured[name] for name in make}, baselines


def _waves(children: list[Forked], size: int) -> list[list[Forked]]:
    return [children[i : i + size] for i in range(0, len(children), max(1, size))]


def _together(children: list[Forked], work: Callable[[Forked], None]) -> None:
    """`work` for each child at once. The threads here only wait on pipes; the work is done in the children."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(len(children)) as pool:
        for future in [pool.submit(work, child) for child in children]:
            future.result()


def _latency(children: dict[str, Forked], timing: Timing) -> dict[str, dict[int, list[float]]]:
    found: dict[str, dict[int, list[float]]] = {name: {} for name in children}
    for size in timing.batch_sizes:
        spent: dict[str, list[float]] = {name: [] for name in children}
        for turn in range(ROUNDS):
            for name, child in children.items():
                left = timing.repeats - len(spent[name])
                if left > 0 and sum(spent[name]) < timing.budget_ms:
                    share = -(-left // (ROUNDS - turn))
                    if turn:
                        typical = float(np.median(spent[name]))
                        share = min(share, max(1, int(timing.budget_ms / ROUNDS / max(typical, 1e-6))))
                    else:
                        # The first turn learns how long a pass takes; it must not eat the whole budget.
                        share = min(share, 3)
                    spent[name] += child.call("time", size, share, turn > 0)
        for name, times in spent.items():
            found[name][size] = times
    return found


def _same_examples(measured: dict[str, Measured]) -> None:
    """Every model must have seen the same truth in the same order."""
    first = next(iter(measured))
    expected = measured[first].predictions
    for name, found in measured.items():
        if len(next(iter(found.predictions.values()))) != len(next(iter(expected.values()))):
            raise StageError(f"{name!r} and {first!r} were given different numbers of examples", where="models")
        if "labels" in expected and not np.array_equal(found.predictions["labels"], expected["labels"]):
            raise StageError(
                f"{name!r} and {first!r} were given different labels",
                where="models",
                hint="Train both on one dataset.",
            )
