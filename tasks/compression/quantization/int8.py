"""Post-training quantization with ONNX Runtime: eight bits for weights and activations.

- dynamic: activations are scaled batch by batch as they come; no data is needed.
- static: their scales are those that calibration examples had, which the graph then holds.

Nodes are called what the model calls its layers (`tasks/compression/onnx/layer_names.py`), so layers are left in
floating point by name.

Convolutions are quantized by `static` alone. Their weights always have a scale for each output channel: a BatchNorm
that was folded into them leaves channels of very different size, and by channel it makes no difference whether weights
are rounded before or after.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tasks.compression.onnx.layers import Batch, layers
from tasks.compression.onnx.operators import quantized_by

FUSED = ["Relu", "Clip"]
"""What stands behind a convolution and is no more than the range of the scale that its output gets."""


def quantize_dynamic_int8(
    source: Path,
    target: Path,
    *,
    per_channel: bool,
    reduce_range: bool,
    keep_float: Sequence[str] = (),
    operators: Sequence[str] | None = None,
) -> None:
    """Write `source` with int8 weights to `target`, but for the nodes named in `keep_float`."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=list(operators or quantized_by("dynamic_int8")),
            per_channel=per_channel,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(keep_float),
        )


def quantize_static_int8(
    source: Path,
    target: Path,
    batches: Sequence[Batch],
    *,
    per_channel: bool,
    reduce_range: bool,
    keep_float: Sequence[str] = (),
) -> None:
    """Write `source` with int8 weights and activations to `target`; `batches` show how large the latter get."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    convolutions = {layer.weight for layer in layers(onnx.load(str(source)).graph) if layer.operator == "Conv"}
    by_channel = {"axis": 0, "quant_type": QuantType.QInt8, "symmetric": True, "reduce_range": reduce_range}

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> Batch | None:
            return next(self.left, None)

    with _quiet():
        quantize_static(
            source,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=quantized_by("static_int8") + (FUSED if convolutions else []),
            per_channel=per_channel,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(keep_float),
            extra_options={
                "MatMulConstBOnly": True,  # attention's own products stay in float, as in dynamic
                "TensorQuantOverrides": {name: [by_channel] for name in sorted(convolutions)},
            },
        )


def share_tables(file: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """Let products with a transposed weight read the table that its lookups read, not one of their own; in place.

    pairs: (weight, its transpose), before they were quantized. The runtime turns the table once, when it loads the
    graph. Tables that are not both quantized, or not with one scale each, stay as they are.
    """
    import onnx
    from onnx import helper

    model = onnx.load(str(file))
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for weight, transpose in pairs:
        parts = [(f"{weight}_{part}", f"{transpose}_{part}") for part in ("quantized", "scale", "zero_point")]
        if not all(name in tensors for pair in parts for name in pair):
            continue
        if any(tensors[name].dims for _, name in parts[1:]):
            continue
        renamed = {old: new for new, old in parts[1:]}
        for node in graph.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
        for _, name in parts:
            graph.initializer.remove(tensors[name])
        (table, turned), *_ = parts
        graph.node.insert(0, helper.make_node("Transpose", [table], [turned], perm=[1, 0]))
    onnx.save(model, str(file))


@contextmanager
def _quiet() -> Iterator[None]:
    """It advises a pre-processing step that changes nothing for a graph which torch has already optimised."""
    root = logging.getLogger()
    level = root.level
    try:
        root.setLevel(logging.ERROR)
        yield
    finally:
        root.setLevel(level)
