"""Layer-wise reconstruction: columns of a weight are changed one by one, and those to the right make up for it.

A linear layer with inputs X [tokens, in] and weight W [out, in] should go on giving X W^T after a column was pruned or
rounded. The weights that are still free absorb the error best, in least squares, by the optimal brain surgeon's update
(Hassibi and Stork, 1993), which for columns in a fixed order needs one Cholesky factor of the inverse of H = X^T X:
GPTQ (Frantar et al., 2022) for rounding, SparseGPT (Frantar and Alistarh, 2023) for pruning.
"""

from __future__ import annotations

from typing import Protocol

import torch

from infra.errors import StageError


class Columns(Protocol):
    """What happens to the columns."""

    def begin(self, weight: torch.Tensor, factor: torch.Tensor) -> None:
        """Look at the next block, [out, block], as earlier errors have left it, and its diagonal of the factor."""
        ...

    def project(self, column: torch.Tensor, place: int) -> torch.Tensor:
        """What becomes of the column at `place` of the block, [out]."""
        ...


def check_calibration(layer: str, rows: int, width: int) -> None:
    """Raises StageError where fewer rows (tokens, patches) were read than a layer has inputs: H would be damping."""
    if rows < width:
        raise StageError(
            f"{rows} rows of inputs are too few to see how the {width} inputs of {layer} go together",
            where="samples",
            hint="Raise `samples`, or give more or longer training examples.",
        )


def inverse_factor(moments: torch.Tensor, damping: float = 0.01) -> torch.Tensor:
    """U [in, in], upper triangular, with U^T U the inverse of the damped moments, float64.

    damping: this share of the mean diagonal is added to it, so that inputs that always move together, or never, have an
    inverse.
    """
    damped = moments.double().clone()
    diagonal = damped.diagonal()
    mean = diagonal.mean()
    diagonal += damping * mean if mean > 0 else 1.0
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def reconstruct(weight: torch.Tensor, factor: torch.Tensor, columns: Columns, block: int) -> torch.Tensor:
    """The weight [out, in] after `columns` acted on it from left to right, `block` columns at a time, float64."""
    left = weight.double().clone()
    for start in range(0, left.shape[1], block):
        end = min(start + block, left.shape[1])
        within = factor[start:end, start:end]
        part = left[:, start:end]
        columns.begin(part.clone(), within.diagonal())
        errors = torch.zeros_like(part)
        for place in range(end - start):
            column = part[:, place].clone()
            kept = columns.project(column, place)
            errors[:, place] = (column - kept) / within[place, place]
            part[:, place:] -= errors[:, place, None] * within[None, place, place:]
            part[:, place] = kept
        left[:, end:] -= errors @ factor[start:end, end:]
    return left
