"""Robustness: the same examples, changed a little, and how much worse a model is on them.

    perturbations:
      typos: {noise: 0.05}          # one character of words in twenty is another letter
      gaps: {delete: 0.1}           # one word in ten is gone

`f1_macro[typos]` is the metric on the changed examples, and `f1_macro_drop[typos]` how much worse that is than on the
examples as they are, whichever way the metric points (of class spam: `recall_drop@spam[typos]`). What is changed
depends on seed and place alone, so all models read the same changes; both metrics are taken on the same resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from infra.errors import StageError

if TYPE_CHECKING:
    from tasks.objective import Augmentation, Feature, Objective
    from tasks.training.loop.features import AugmentedExamples

Array = npt.NDArray[np.float64]


def perturbed(
    objective: Objective, plain: Sequence[Feature], perturbation: Augmentation, seed: int
) -> AugmentedExamples:
    """The examples, to be drawn with changes. Raises StageError where there is nothing to change."""
    from tasks.training.loop.features import AugmentedExamples

    try:
        return AugmentedExamples(objective, plain, perturbation, seed)
    except StageError as error:
        raise StageError(
            error.what,
            where="perturbations",
            hint="They need a dataset whose examples are read one by one, and answers that do not lie in them: else "
            "leave them out.",
        ) from error


def robustness(
    name: str, clean: Mapping[str, Array], changed: Mapping[str, Array], higher_is_better: Callable[[str], bool]
) -> dict[str, Array]:
    """`metric[name]` and `metric_drop[name]` -> [R], from metric -> [R] on the examples as they are and as changed."""
    found = {f"{metric}[{name}]": values for metric, values in changed.items()}
    for metric, values in changed.items():
        stem, mark, rest = metric.partition("@")
        drop = clean[metric] - values if higher_is_better(metric) else values - clean[metric]
        found[f"{stem}_drop{mark}{rest}[{name}]"] = drop
    return found
