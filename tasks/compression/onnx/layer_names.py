"""Nodes of an exported graph are called what the model calls the layer, because people choose layers by their names."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

from tasks.compression.onnx.operators import OPERATORS

if TYPE_CHECKING:
    import onnx_ir
    from transformers import PreTrainedModel


def name_layers(exported: onnx_ir.Model, model: PreTrainedModel) -> None:
    """Name the nodes that multiply by a weight, in place.

    The exporter keeps a matrix's name only where it keeps its layout, so matrices are known by their numbers. It keeps
    the name of a convolution's weight and changes its numbers, where it folds a BatchNorm into it.
    """
    layers: dict[tuple[bool, bytes], list[str]] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.nn.Parameter) and weight.ndim >= 2:
            layers.setdefault((isinstance(module, torch.nn.Embedding), _digest(weight.detach())), []).append(name)
    convolutions = {
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d)
    }
    for node in exported.graph.all_nodes():
        operator = OPERATORS.get(node.op_type)
        for value in node.inputs if operator is not None else ():
            producer = value.producer() if value is not None else None
            if producer is not None and producer.op_type == "Transpose":
                value = producer.inputs[0]
            if operator is None or value is None or value.const_value is None:
                continue
            if len(value.const_value.shape) not in operator.axes:
                continue
            # The exporter sees the model as `model` of what it exports.
            own = str(value.name).removeprefix("model.").removesuffix(".weight")
            if node.op_type == "Conv" and own in convolutions:
                convolutions.remove(own)
                node.name = own
                continue
            names = layers.get((node.op_type == "Gather", _digest(torch.from_numpy(value.const_value.numpy()))))
            if names:
                node.name = names.pop(0)


def _digest(weight: torch.Tensor) -> bytes:
    """The same for a matrix and its transpose."""
    forms = (weight, weight.T) if weight.ndim == 2 else (weight,)
    return min(hashlib.sha256(form.contiguous().numpy().tobytes()).digest() for form in forms)
