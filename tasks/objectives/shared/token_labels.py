"""What objectives with a label for each token share: those labelled -100 are not learned from, all others are units."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.objective import Batch, Objective, Outputs

if TYPE_CHECKING:
    import torch


class TokenLabels(Objective):
    """An objective whose logits [B, T, C] stand beside `labels` [B, T]."""

    def units(self, batch: Batch) -> int:
        from tasks.losses.cross_entropy import IGNORED

        return int((batch["labels"] != IGNORED).sum())

    def teacher_targets(self, outputs: Outputs, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        from tasks.losses.cross_entropy import IGNORED

        counted = batch["labels"] != IGNORED
        return outputs["logits"][counted], counted.sum(1)
