"""Quantization-aware training: a model computes with rounded weights, and learns as if they were not rounded.

    with fake_quantized(model, "int4", GridParams(group_size=128), where="stages.aware"):
        train(...)

Within, linear layers and embeddings read each weight at the nearest value of the grid that `quantize` will round it to;
with eight bits they see their inputs in eight bits too (Jacob et al., 2018), and with `static_int8` so do convolutions,
which the other schemes leave alone as their graphs do. A BatchNorm stays: the graph folds it into the convolution
before rounding, but with a scale for each output channel rounding before or after makes no difference. The gradient
passes the rounding unchanged (straight-through estimator: Bengio et al., 2013), so what learns is the floating-point
weight under it. Parameters, their names and what is tied stay as they are; at the end the model is the plain one again.

ONNX Runtime scales the inputs of a layer by the largest in the whole batch, or in calibration. Here each row (token)
has its own scale, and each example that a convolution reads, because a model must not learn otherwise where a batch is
split otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from transformers.pytorch_utils import Conv1D

from infra.errors import StageError
from tasks.compression.onnx.layers import matching
from tasks.compression.quantization import grids
from tasks.compression.quantization.coverage import without_form

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.compression.quantization.grid_settings import GridParams

Convolution = torch.nn.Conv1d | torch.nn.Conv2d
Scheme = Literal["dynamic_int8", "static_int8", "int4"]
Rounding = Callable[[torch.Tensor], torch.Tensor]


class _StraightThrough(torch.autograd.Function):
    """Rounded forwards; backwards as if it had not been."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, rounding: Rounding) -> torch.Tensor:
        return rounding(values)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


def straight_through(values: torch.Tensor, rounding: Rounding) -> torch.Tensor:
    """`rounding(values)`, with the gradient of `values`."""
    rounded: torch.Tensor = _StraightThrough.apply(values, rounding)  # type: ignore[no-untyped-call]
    return rounded


@contextmanager
def fake_quantized(model: PreTrainedModel, scheme: Scheme, params: GridParams, *, where: str) -> Iterator[None]:
    """Within, the model computes as its quantized graph will, but for the layers in `params.keep_float`.

    Raises StageError, naming the stage at `where`, where one of these patterns matches nothing, or all layers, and
    where the scheme has no form for most of the weights.
    """
    layers: dict[str, Any] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D | torch.nn.Embedding | Convolution)
    }
    sizes = {name: (_operator(module), module.weight.numel()) for name, module in layers.items()}
    unable = without_form(sizes, scheme, where=f"{where}.scheme")
    kept = matching(layers, params.keep_float, where=f"{where}.keep_float")
    chosen = {name: module for name, module in layers.items() if name not in kept and name not in unable}
    if not chosen:
        raise StageError(
            f"all {len(layers)} layers stay in floating point, so nothing is quantized",
            where=f"{where}.keep_float",
            hint="Keep fewer of them.",
        )
    tables = {id(module.weight) for module in chosen.values() if isinstance(module, torch.nn.Embedding)}
    weights: Rounding
    for module in chosen.values():
        if isinstance(module, torch.nn.Embedding):
            # Some families scale or shift their lookups in a forward of their own; those stay as they are.
            if type(module).forward is torch.nn.Embedding.forward:
                module.forward = partial(_embedding, module)  # type: ignore[method-assign]
            continue
        largest = grids.INT8_REDUCED if params.reduce_range else grids.INT8
        if isinstance(module, Convolution):
            # Those that make their weight again in each forward (BiT) stay as they are.
            if type(module).forward in (torch.nn.Conv1d.forward, torch.nn.Conv2d.forward):
                weights = partial(grids.symmetric, largest=largest, by_row=True)
                module.forward = partial(_convolution, module, weights)  # type: ignore[method-assign]
            continue
        if scheme == "int4":
            weights = partial(grids.in_groups, group=params.group_size)
            inputs: Rounding | None = None
        else:
            weights, inputs = partial(grids.symmetric, largest=largest, by_row=params.per_channel), grids.by_row
            if scheme == "dynamic_int8" and id(module.weight) in tables and not params.per_channel:
                weights = grids.whole  # words in and out share one table, and the graph has the lookup's for both
        module.forward = partial(_linear, module, weights, inputs)
    try:
        yield
    finally:
        for module in chosen.values():
            module.__dict__.pop("forward", None)


def _linear(module: Any, weights: Rounding, inputs: Rounding | None, values: torch.Tensor) -> torch.Tensor:
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    values = straight_through(values, inputs) if inputs else values
    return F.linear(values, straight_through(weight, weights), module.bias)


def _convolution(module: Any, weights: Rounding, values: torch.Tensor) -> torch.Tensor:
    rounded = straight_through(module.weight.flatten(1), weights).view_as(module.weight)
    given: torch.Tensor = module._conv_forward(straight_through(values, grids.by_example), rounded, module.bias)
    return given


def _operator(module: torch.nn.Module) -> str:
    """What it becomes in a graph."""
    if isinstance(module, torch.nn.Embedding):
        return "Gather"
    return "Conv" if isinstance(module, Convolution) else "MatMul"


def _embedding(module: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
    return F.embedding(ids, straight_through(module.weight, grids.whole), module.padding_idx)
