"""Objectives: what is learned. One file each; every stage works with every objective through this contract.

An objective says how a data artifact becomes features, how features become a batch, which HF auto class fits, what the
loss is, what a prediction is, and which metrics apply. A stage never asks which objective it serves.

Shapes: B examples of a batch, T tokens, C classes or vocabulary, N examples of a split, R bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from tasks.stage import InputArtifact

Feature = Mapping[str, Any]
Predictions = dict[str, npt.NDArray[Any]]


class Objective(Protocol):
    """The contract. An objective is a stateless object named `OBJECTIVE` in its file."""

    name: str
    auto_class: str
    """Name of the HF auto class, e.g. `AutoModelForCausalLM`."""
    data_types: tuple[str, ...]
    """Artifact types it can read: `tokens` (packed) or `dataset` (text and label columns)."""
    primary_metric: str
    """The metric people compare models by, and whether more is better."""
    greater_is_better: bool

    def head(self, data: InputArtifact) -> dict[str, Any]:
        """HF config fields the data decides (number of labels and their names); empty where there are none."""
        ...

    def features(
        self, data: InputArtifact, split: str, tokenizer: PreTrainedTokenizerFast | None, max_length: int
    ) -> Sequence[Feature]:
        """The split's examples in frozen order. Raises StageError on a split that is missing, empty or unusable."""
        ...

    def collate(self, features: Sequence[Feature], pad_token_id: int) -> dict[str, torch.Tensor]:
        """A batch: int64 `input_ids` [B, T], `attention_mask` [B, T] and `labels`, padded to the longest example."""
        ...

    def units(self, batch: Mapping[str, torch.Tensor]) -> int:
        """How many units `loss` sums over in this batch; known before the forward pass, so ranks can agree on it."""
        ...

    def loss(self, logits: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
        """(sum of the loss over the counted units, how many units): tokens for language models, else examples.

        Sums, not means, so that the average is right whatever the accumulation and however units fall on ranks.
        """
        ...

    def soft_loss(
        self, logits: torch.Tensor, teacher_logits: torch.Tensor, batch: Mapping[str, torch.Tensor], temperature: float
    ) -> torch.Tensor:
        """Distillation loss summed over the units of `loss`: T^2 * KL(teacher || student) (Hinton et al., 2015)."""
        ...

    def predictions(self, logits: npt.NDArray[Any], batch: Mapping[str, npt.NDArray[Any]]) -> Predictions:
        """What evaluation keeps of a batch, one row per example: enough to compute every metric later."""
        ...

    def metrics(self, predictions: Predictions, weights: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
        """Metric name -> [R] values, one for each row of example weights [R, N] (ones: the point estimate)."""
        ...

    def baselines(self, train: Sequence[Feature], heldout: Sequence[Feature]) -> dict[str, float]:
        """Values of `primary_metric` a model must beat to mean anything: majority class, unigram, bigram."""
        ...

    def samples(self, model: PreTrainedModel, tokenizer: Any, heldout: Sequence[Feature]) -> list[dict[str, str]]:
        """A few human-readable outputs for the report: prompt and continuation, or text, truth and prediction."""
        ...
