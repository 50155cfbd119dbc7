"""Pruning of single weights while the model learns: the training loop calls it after each step.

    pruning = GradualPruning(model, "movement", schedule, keep=0.3)
    train(..., tuning=pruning.tuning, after_step=pruning)
    masks = release_zeros(model)

- `magnitude`: the smallest go (Zhu and Gupta, 2017).
- `movement`: those that training has moved towards zero go. A weight's score is S = - sum over steps of w dL/dw, which
  is what plain gradient descent makes of the scores of Sanh et al. (2020, equation 4). Theirs are parameters of their
  own, learned by AdamW at a rate of their own, and let a weight come back; here the optimizer adds up the products.

What is removed stays zero, as after pruning at once. Masks and scores are in every checkpoint, so a resumed training
run removes what an undisturbed one would have removed, at any ZeRO stage and number of ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from tasks.compression.pruning.weights import Sparsity, hold_zeros
from tasks.models.structure.parts import matrices
from tasks.training.engine.optimizers import SCORE
from tasks.training.engine.parameter_groups import Tuning

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.compression.pruning.schedule import PruningSchedule
    from tasks.training.engine.parameters import Parameters

GradualMethod = Literal["magnitude", "movement"]


class GradualPruning:
    """Of one training, on every rank alike."""

    def __init__(
        self,
        model: PreTrainedModel,
        method: GradualMethod,
        schedule: PruningSchedule,
        keep: float,
        *,
        whole_model: bool = False,
    ) -> None:
        """whole_model: weights are compared with those of all layers, not only of their own."""
        self.method, self.schedule, self.keep, self.whole_model = method, schedule, keep, whole_model
        self.layers = {f"{name}.weight": module for layer in matrices(model) for name, module in layer.items()}
        masks = {
            name: torch.ones_like(layer.get_parameter("weight"), dtype=torch.bool)
            for name, layer in self.layers.items()
        }
        hold_zeros(model, masks)
        self.tuning = Tuning(scored=frozenset(self.layers if method == "movement" else ()))

    def __call__(self, step: int, total_steps: int, parameters: Parameters) -> None:
        """Remove what the schedule says is too much after `step` steps. Collective."""
        keep = self.schedule.kept(step, total_steps, self.keep)
        if keep is None:
            return
        together = [list(self.layers)] if self.whole_model else [[name] for name in self.layers]
        for names in together:
            scores = [self._scores(name, parameters) for name in names]
            mask = Sparsity(keep).mask(torch.cat(scores)[None])[0]
            for name, part in zip(names, torch.split(mask, [len(score) for score in scores]), strict=True):
                kept = self.layers[name].get_buffer("kept")
                kept.copy_(part.view_as(kept))
        parameters.remove({name: ~layer.get_buffer("kept") for name, layer in self.layers.items()})

    def _scores(self, name: str, parameters: Parameters) -> torch.Tensor:
        """Of each weight, flat; the lowest go. What has gone is the lowest of all, so it goes again."""
        scored = self.method == "movement"
        scores = parameters.whole(name, SCORE) if scored else parameters.whole(name, "weights").abs()
        return scores.masked_fill(~self.layers[name].get_buffer("kept"), -torch.inf).flatten()
