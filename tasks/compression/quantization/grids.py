"""Evenly spaced values that quantized numbers can have, by a scale and the code that stands for zero.

Scales are computed in double precision and kept in fp32, as ONNX Runtime does, so that training with fake quantization
and the quantizer of the shipped graph agree on every code (but for ties that fp32 division breaks otherwise).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

INT4, UINT8 = 15, 255
"""Largest codes of grids with a zero point; the smallest is 0."""
INT8, INT8_REDUCED = 127, 64
"""Largest codes of grids around zero; the smallest are their negatives."""


def affine(low: torch.Tensor, high: torch.Tensor, largest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points of grids from `low` to `high`, zero among their values (Jacob et al., 2018), float64."""
    low, high = low.double().clamp(max=0), high.double().clamp(min=0)
    scale = _scale((high - low) / largest)
    return scale, torch.round(-low / scale).clamp(0, largest)


def in_groups(weight: torch.Tensor, group: int) -> torch.Tensor:
    """A matrix [out, in] with each weight at its nearest value of four bits, a grid for each group in a row."""
    width = weight.shape[1]
    # Zero is in every grid, so the zeros that fill the last group up move none.
    rows = F.pad(weight, (0, -width % group)).reshape(-1, group)
    return _to_affine(rows, INT4).reshape(len(weight), -1)[:, :width]


def by_row(values: torch.Tensor) -> torch.Tensor:
    """Values [..., width] at their nearest of eight bits, a grid for each row, from its smallest to its largest."""
    return _to_affine(values, UINT8)


def by_example(values: torch.Tensor) -> torch.Tensor:
    """Values [B, ...] at their nearest of eight bits, a grid for each example, from its smallest to its largest."""
    return _to_affine(values.reshape(len(values), -1), UINT8).view_as(values)


def whole(table: torch.Tensor) -> torch.Tensor:
    """A matrix at its nearest values of eight bits, one grid from its smallest to its largest."""
    return _to_affine(table.reshape(1, -1), UINT8).view_as(table)


def symmetric(weight: torch.Tensor, largest: int, *, by_row: bool) -> torch.Tensor:
    """A matrix [out, in] at its nearest values of one grid around zero, or one for each row."""
    size = weight.abs().amax(1, keepdim=True) if by_row else weight.abs().amax()
    scale = _scale(size.double() / largest).float()
    return (torch.round(weight.float() / scale) * scale).to(weight.dtype)


def _to_affine(rows: torch.Tensor, largest: int) -> torch.Tensor:
    """The last axis shares a grid."""
    scale, zero = (x.float() for x in affine(rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True), largest))
    codes = (torch.round(rows.float() / scale) + zero).clamp(0, largest)
    return ((codes - zero) * scale).to(rows.dtype)


def _scale(step: torch.Tensor) -> torch.Tensor:
    """What ships is a float32, so it is that one the codes are made for; 1 where all values are zero."""
    kept = step.float().double()
    return torch.where(kept > 0, kept, 1.0)
