"""Rows of logits cut down to the largest few and the mass of the rest, so that those of a large vocabulary can be kept.

The rest stands as one more class: the KL divergence over k + 1 classes bounds that over all from below (the data
processing inequality), and is equal to it where teacher and student share the rest out alike.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class TopK(NamedTuple):
    """`logits` [N, k], the largest first; `ids` int64 [N, k], their classes; `rest` [N]: ln of the summed exponentials
    of all others at a temperature T, ln sum exp(logit / T)."""

    logits: torch.Tensor
    ids: torch.Tensor
    rest: torch.Tensor

    @classmethod
    def of(cls, rows: torch.Tensor, k: int, temperature: float) -> TopK:
        """rows: [N, C], C > k."""
        logits, ids = rows.topk(k, dim=-1)
        return cls(logits, ids, _rest(rows / temperature, ids))

    def both(self, rows: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows [N, C], these), each as k + 1 logits divided by T, at the temperature that `rest` was taken at."""
        own = rows / temperature
        own = torch.cat([own.gather(-1, self.ids), _rest(own, self.ids)[:, None]], -1)
        return own, torch.cat([self.logits / temperature, self.rest[:, None]], -1)


def _rest(rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return rows.scatter(-1, ids, -torch.inf).logsumexp(-1)
