"""Robustness: the same examples with changed texts, and how much worse a model is on them.

    perturbations:
      typos: {noise: 0.05}          # one character of words in twenty is another letter
      gaps: {delete: 0.1}           # one word in ten is gone

`f1_macro[typos]` is the metric on the changed texts, and `f1_macro_drop[typos]` how much worse that is than on the
texts as they are, whichever way the metric points (of class spam: `recall_drop@spam[typos]`). What is changed depends
on seed and place alone, so all models read the same changed texts; both metrics are taken on the same resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import Field

from infra.errors import StageError
from tasks.objectives.text.inputs.augmentation import Augment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tasks.objective import Feature, Objective
    from tasks.stage import InputArtifact
    from tasks.training.loop.features import AugmentedTexts

Array = npt.NDArray[np.float64]


class Perturbation(Augment):
    """What is done to the texts a model is judged on."""

    share: float = Field(1.0, ge=0, le=1, description="Share of the examples that are changed at all.")


def changed_texts(
    objective: Objective,
    plain: Sequence[Feature],
    data: InputArtifact,
    split: str,
    tokenizer: PreTrainedTokenizerFast | None,
    max_length: int,
    perturbation: Perturbation,
    seed: int,
) -> AugmentedTexts:
    """The examples, to be drawn with their texts changed. Raises StageError where there is no text to change."""
    from tasks.training.loop.features import AugmentedTexts

    try:
        return AugmentedTexts(objective, plain, data, split, tokenizer, max_length, perturbation, seed)
    except StageError as error:
        raise StageError(
            error.what,
            where="perturbations",
            hint="They need a dataset whose texts are read one by one, and answers that do not lie in the text: else "
            "leave them out.",
        ) from error


def robustness(
    name: str, clean: Mapping[str, Array], changed: Mapping[str, Array], higher_is_better: Callable[[str], bool]
) -> dict[str, Array]:
    """`metric[name]` and `metric_drop[name]` -> [R], from metric -> [R] on the texts as they are and as changed."""
    found = {f"{metric}[{name}]": values for metric, values in changed.items()}
    for metric, values in changed.items():
        stem, mark, rest = metric.partition("@")
        drop = clean[metric] - values if higher_is_better(metric) else values - clean[metric]
        found[f"{stem}_drop{mark}{rest}[{name}]"] = drop
    return found
