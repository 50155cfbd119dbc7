"""The language-model loss with half the memory: what torch's cross entropy gives, its gradient made in one buffer."""

from __future__ import annotations

from typing import Any

import torch

IGNORED = -100


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        scores = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        counted = targets != IGNORED
        places = torch.where(counted, targets, 0)[:, None]
        ctx.save_for_backward(scores, places, counted)
        ctx.dtype = logits.dtype
        return -scores.gather(1, places).squeeze(1).mul(counted).sum()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        scores, places, counted = ctx.saved_tensors
        weights = (gradient * counted)[:, None]
        # softmax - one-hot, in the memory of the scores: nobody else sees them.
        found = scores.exp_().mul_(weights).scatter_add_(1, places, -weights)
        return found.to(ctx.dtype), None


def summed_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum over the rows of -log softmax(logits)[target], in fp32; rows with target -100 count nothing.

    logits: float [N, C]; targets: int64 [N]. The same as `torch.nn.functional.cross_entropy`, but the gradient takes
    the place of the saved log-probabilities instead of two more buffers of the logits' size: with a vocabulary of
    thousands these are the largest of a training run. So it can be differentiated once only.
    """
    total: torch.Tensor = _CrossEntropy.apply(logits, targets)  # type: ignore[no-untyped-call]
    return total
