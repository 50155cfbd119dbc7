"""BatchNorm that trains to one result, however a step is split over micro-batches and ranks.

What a layer normalises over is part of what is learned. Here it is `norm_group` consecutive examples of a step ("ghost
batches", Hoffer et al., 2017), and micro-batches hold whole groups. Running statistics move once a step, towards the
mean over all examples of all ranks.

A layer whose weights are frozen keeps its statistics and normalises by them, in training too: other statistics would
change what frozen weights give.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from infra.errors import StageError

if TYPE_CHECKING:
    from tasks.training.engine.ranks import Ranks
    from tasks.training.settings import TrainingParams


def _layers(model: torch.nn.Module) -> Iterator[_BatchNorm]:
    """Those that keep running statistics."""
    return (m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None)


def _learns(layer: _BatchNorm) -> bool:
    return layer.weight is None or layer.weight.requires_grad


def norm_group(model: torch.nn.Module, params: TrainingParams, *, where: str) -> int:
    """Examples that are normalised together, 1 where none are. where: the stage, to blame.

    Raises StageError where a setting is for BatchNorm and the model has none.
    """
    layers = list(_layers(model))
    default = type(params).model_fields["norm_group"].default
    for field, given in (("norm_group", params.norm_group != default), ("freeze_batch_norm", params.freeze_batch_norm)):
        if given and not layers:
            raise StageError(
                f"{type(model).__name__} has no BatchNorm", where=f"{where}.{field}", hint=f"Leave out `{field}`."
            )
    return params.norm_group if any(map(_learns, layers)) and not params.freeze_batch_norm else 1


class GroupedBatchNorm:
    """The BatchNorm layers of a model under training. Every rank calls the same methods in the same order."""

    def __init__(self, model: torch.nn.Module, group: int, ranks: Ranks, *, freeze: bool) -> None:
        """group: examples that are normalised together. freeze: no layer changes, neither weights nor statistics."""
        self._ranks, self._frozen = ranks, []
        if freeze:
            parameters = [p for layer in _layers(model) for p in layer.parameters(recurse=False) if p.requires_grad]
            self._frozen = [p.requires_grad_(False) for p in parameters]
        self._layers = [_Layer(layer, group if _learns(layer) else None) for layer in _layers(model)]

    def begin_step(self) -> None:
        """Forget what was seen: a step that did not fit into memory has left something."""
        for layer in self._layers:
            layer.forget()

    def end_step(self) -> None:
        """Move the running statistics to what this step has seen on all ranks. Collective."""
        moved = [layer for layer in self._layers if layer.group]
        if moved:
            seen = self._ranks.add_up(torch.cat([layer.seen for layer in moved]))
            for layer, sums in zip(moved, torch.split(seen, [len(layer.seen) for layer in moved]), strict=True):
                layer.move(sums)

    def close(self) -> None:
        """Leave the model as it was."""
        for layer in self._layers:
            del layer.norm.forward
        for parameter in self._frozen:
            parameter.requires_grad_(True)


class _Layer:
    """One layer, which gets another `forward`. seen: sums over examples of mean and variance, and their number."""

    def __init__(self, norm: _BatchNorm, group: int | None) -> None:
        self.norm, self.group = norm, group
        self.forget()
        norm.forward = self._forward  # type: ignore[method-assign,assignment]

    def forget(self) -> None:
        mean = self._running()[0]
        self.seen = torch.zeros(2 * len(mean) + 1, dtype=torch.float64, device=mean.device)

    def _running(self) -> tuple[torch.Tensor, torch.Tensor]:
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None and variance is not None, "`_layers` chose"
        return mean, variance

    def _forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[B, C, ...] -> the same shape."""
        norm, (mean, variance) = self.norm, self._running()
        if not self.group or not norm.training:
            return functional.batch_norm(inputs, mean, variance, norm.weight, norm.bias, False, 0.0, norm.eps)
        parts = []
        for part in torch.split(inputs, _sizes(len(inputs), self.group)):
            own = torch.zeros_like(mean), torch.ones_like(variance)
            parts.append(functional.batch_norm(part, *own, norm.weight, norm.bias, True, 1.0, norm.eps))
            self.seen += len(part) * torch.cat([*own, own[0].new_ones(1)]).double()
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    @torch.no_grad()
    def move(self, sums: torch.Tensor) -> None:
        """sums: `seen` of all ranks."""
        mean, variance = self._running()
        count = sums[-1]
        if not float(count):
            return
        momentum = self.norm.momentum
        if self.norm.num_batches_tracked is not None:
            self.norm.num_batches_tracked += 1
            momentum = 1 / int(self.norm.num_batches_tracked) if momentum is None else momentum
        for running, total in zip((mean, variance), (sums[: len(mean)], sums[len(mean) : -1]), strict=True):
            running.lerp_((total / count).to(running.dtype), momentum or 0.0)


def _sizes(count: int, group: int) -> list[int]:
    """Groups of `count` examples; a last one of a single example, which has no variance, goes with the one before."""
    sizes = [min(group, count - start) for start in range(0, count, group)]
    return [*sizes[:-2], sizes[-2] + 1] if len(sizes) > 1 and sizes[-1] == 1 else sizes
