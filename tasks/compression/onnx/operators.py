"""The ONNX operators that hold a weight: where it is, how it lies, and which number formats have a form for it.

Convolutions may have one or two axes of places, and groups (depthwise ones too): [out, in / groups, *kernel] all the
same, so an output channel is always the first axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx


@dataclass(frozen=True)
class Operator:
    """weight, reads: numbers of the inputs that are its weight and what it is applied to.

    output: axis of the weight along which its output channels lie (a table's rows); all others are summed over.
    axes: how many axes a weight can have. schemes: the `scheme`s of `quantize` that change it.
    """

    weight: int
    reads: int
    output: int
    axes: tuple[int, ...]
    schemes: tuple[str, ...]


INT8 = ("dynamic_int8", "static_int8")
OPERATORS = {
    "MatMul": Operator(1, 0, 1, (2,), (*INT8, "int4", "float16")),
    "Gemm": Operator(1, 0, 1, (2,), (*INT8, "int4", "float16")),
    "Gather": Operator(0, 1, 0, (2,), (*INT8, "int4", "float16")),
    # ONNX Runtime's dynamic ConvInteger is slower than float, and there is no convolution in four bits.
    "Conv": Operator(1, 0, 0, (3, 4), ("static_int8", "float16")),
}
"""Gather is the embedding table, in small models the largest weight of all. Gemm with `transB` has [out, in]."""


def quantized_by(scheme: str) -> list[str]:
    """The operators that a `scheme` of `quantize` changes."""
    return [name for name, operator in OPERATORS.items() if scheme in operator.schemes]


def output_axis(node: onnx.NodeProto) -> int:
    """Axis of a node's weight along which its output channels lie."""
    turned = node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if turned else OPERATORS[node.op_type].output
