"""Post-training dynamic quantization with ONNX Runtime."""

from __future__ import annotations

import logging
from pathlib import Path

OPERATORS = ["MatMul", "Gemm", "Gather"]
"""Gather is the embedding table, in small models the largest weight of all."""


def quantize_dynamic_int8(source: Path, target: Path, *, per_channel: bool, reduce_range: bool) -> None:
    """Write `source` with int8 weights to `target`; activations are quantized at run time, batch by batch."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    try:
        # It advises a pre-processing step that changes nothing for a graph which torch has already optimised.
        root.setLevel(logging.ERROR)
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=OPERATORS,
            per_channel=per_channel,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
        )
    finally:
        root.setLevel(level)
