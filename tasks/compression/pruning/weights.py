"""Pruning of single weights: they become zero and stay zero; shapes and files stay as large as they were.

- `magnitude`: the smallest go, in each layer or in the whole model (Han et al., 2015).
- `wanda`: |w_ij| times the norm of input j, compared within each row (Sun et al., 2023).
- `sparsegpt`: those whose removal the others can best make up for, which they then do (Frantar and Alistarh, 2023).

n:m keeps n of every m weights that lie side by side in a row; a convolution's rows hold its channels side by side, of
one place of the kernel after the other. Layers are pruned from the bottom up, so that each sees
what the pruned ones below it give. Nothing runs faster by it unless a runtime makes use of zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from infra.errors import StageError
from tasks.compression.pruning.calibration import Batch, as_stored, matrix, second_moments
from tasks.compression.reconstruction import inverse_factor, reconstruct
from tasks.models.structure.parts import matrices

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Method = Literal["magnitude", "wanda", "sparsegpt"]
BLOCK = 128


@dataclass(frozen=True)
class Sparsity:
    """How much stays: a share, or `n` of every `m` side by side."""

    keep: float
    n: int = 0
    m: int = 0

    def mask(self, scores: torch.Tensor, *, by_row: bool = False) -> torch.Tensor:
        """bool [out, in], True where a weight stays: those with the highest scores. Of equal ones the first stay.

        by_row: every row keeps as many; otherwise the whole matrix is compared.
        """
        if self.m:
            self.require_fit(scores.shape[1])
            return _highest(scores.reshape(-1, self.m), self.n).reshape(scores.shape)
        flat = scores if by_row else scores.reshape(1, -1)
        return _highest(flat, round(self.keep * flat.shape[1])).reshape(scores.shape)

    def require_fit(self, width: int) -> None:
        """Raises StageError where so many weights, or channels, do not divide into groups of `m`."""
        if self.m and width % self.m:
            raise StageError(
                f"rows of {width} weights do not divide into groups of {self.m}",
                where="pattern",
                hint="Choose a pattern whose second number divides the widths of the model.",
            )


def _highest(rows: torch.Tensor, count: int) -> torch.Tensor:
    if count == 0:
        return torch.zeros_like(rows, dtype=torch.bool)
    lowest = rows.kthvalue(rows.shape[1] - count + 1, dim=1, keepdim=True).values
    above, equal = rows > lowest, rows == lowest
    return above | (equal & (equal.cumsum(1) <= count - above.sum(1, keepdim=True)))


def prune_weights(
    model: PreTrainedModel, batches: Sequence[Batch], method: Method, sparsity: Sparsity, *, whole_model: bool = False
) -> dict[str, torch.Tensor]:
    """Set weights of the model's matrices to zero, in place; by parameter name the masks, True where one stays.

    whole_model: `magnitude` compares the weights of all layers with each other.
    Raises StageError where n:m does not divide a width.
    """
    layers = matrices(model)
    masks: dict[str, torch.Tensor] = {}
    lowest = _lowest_kept([matrix(m) for layer in layers for m in layer.values()], sparsity) if whole_model else None
    for modules in layers:
        moments = {} if method == "magnitude" else second_moments(model, modules, batches, full=method == "sparsegpt")
        for name, module in modules.items():
            weight = matrix(module)
            if isinstance(module, nn.Conv2d):
                sparsity.require_fit(module.weight.shape[1])
            if method == "sparsegpt":
                columns = _Pruned(sparsity)
                factor = inverse_factor(moments[name])
                weight = reconstruct(weight, factor, columns, sparsity.m or BLOCK)
                mask = torch.cat(columns.masks, 1)
            elif method == "wanda":
                mask = sparsity.mask(weight.abs() * moments[name].sqrt(), by_row=True)
            else:
                mask = weight.abs() >= lowest if lowest is not None else sparsity.mask(weight.abs())
            module.weight.data.copy_(as_stored(module, weight.masked_fill(~mask, 0.0)))
            masks[f"{name}.weight"] = as_stored(module, mask)
    return masks


def hold_zeros(model: PreTrainedModel, masks: Mapping[str, torch.Tensor]) -> None:
    """Make a training run leave pruned weights at zero: without a gradient neither AdamW nor Lion moves or decays them.

    A layer's mask becomes its buffer `kept`, so it goes to the model's device and into checkpoints.
    """
    for name, mask in masks.items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        layer.register_buffer("kept", mask)
        layer.get_parameter("weight").register_hook(partial(_masked, layer))  # type: ignore[no-untyped-call]


def release_zeros(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Take the masks of `hold_zeros` out of the model again; by parameter name, on the CPU."""
    masks = {}
    for name, layer in model.named_modules():
        if "kept" in dict(layer.named_buffers(recurse=False)):
            masks[f"{name}.weight"] = layer.get_buffer("kept").cpu()
            del layer.kept
    return masks


def sparsity_of(model: PreTrainedModel, masks: Mapping[str, torch.Tensor]) -> float:
    """Share of zeros among the weights that were pruned, counted in the model that ships; no removed one came back."""
    weights = dict(model.named_parameters())
    back = [name for name, mask in masks.items() if weights[name].detach()[~mask].any()]
    assert not back, f"pruned weights were trained: {back}"
    zeros = sum(int((weights[name] == 0).sum()) for name in masks)
    return zeros / sum(mask.numel() for mask in masks.values())


def _masked(layer: torch.nn.Module, gradient: torch.Tensor) -> torch.Tensor:
    return gradient * layer.get_buffer("kept")


def _lowest_kept(weights: Sequence[torch.Tensor], sparsity: Sparsity) -> float:
    magnitudes = torch.cat([weight.abs().flatten() for weight in weights])
    removed = len(magnitudes) - round(sparsity.keep * len(magnitudes))
    return float(magnitudes.kthvalue(removed + 1).values)


class _Pruned:
    """SparseGPT's choice: a weight's score is what its removal costs after the others made up for it."""

    def __init__(self, sparsity: Sparsity) -> None:
        self.sparsity = sparsity
        self.masks: list[torch.Tensor] = []

    def begin(self, weight: torch.Tensor, factor: torch.Tensor) -> None:
        self.masks.append(self.sparsity.mask((weight / factor).square()))

    def project(self, column: torch.Tensor, place: int) -> torch.Tensor:
        return column * self.masks[-1][:, place]
