"""Weights in four bits, in groups that share a scale and a zero point; ONNX Runtime computes with them in fp32.

Each group of weights side by side has sixteen values evenly spaced from its smallest to its largest, zero among them.
Rounding to the nearest one needs no data. With second moments of what the layer reads, weights are rounded one after
the other and those to the right make up for the error (GPTQ: Frantar et al., 2022). Embedding tables get eight bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper

from tasks.compression.onnx.layers import Layer, weight
from tasks.compression.quantization.grids import INT4, affine
from tasks.compression.reconstruction import inverse_factor, reconstruct


@dataclass(frozen=True)
class Quantized:
    """A matrix [out, in] as codes 0 to 15, uint8, and of each group a float32 scale and a zero point, [out, groups]."""

    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]
    zero_points: npt.NDArray[np.uint8]
    group: int

    def dense(self) -> npt.NDArray[np.float32]:
        """What the codes stand for."""
        width = self.codes.shape[1]
        scales = np.repeat(self.scales, self.group, 1)[:, :width]
        zeros = np.repeat(self.zero_points, self.group, 1)[:, :width]
        values: npt.NDArray[np.float32] = (self.codes.astype(np.float32) - zeros) * scales
        return values


class _Rounding:
    """Columns go to the nearest value of their group, whose values are chosen when it begins."""

    def __init__(self) -> None:
        self.codes: list[torch.Tensor] = []
        self.scales: list[torch.Tensor] = []
        self.zero_points: list[torch.Tensor] = []

    def begin(self, weight: torch.Tensor, factor: torch.Tensor) -> None:
        scale, zero = affine(weight.amin(1), weight.amax(1), INT4)
        self.scales.append(scale)
        self.zero_points.append(zero)

    def project(self, column: torch.Tensor, place: int) -> torch.Tensor:
        scale, zero = self.scales[-1], self.zero_points[-1]
        code = (torch.round(column / scale) + zero).clamp(0, INT4)
        self.codes.append(code)
        return (code - zero) * scale


def quantized(matrix: npt.NDArray[np.float32], group: int, moments: npt.NDArray[np.float64] | None) -> Quantized:
    """A matrix [out, in] in four bits; moments [in, in]: of its inputs. None: each weight to the nearest."""
    columns = _Rounding()
    factor = torch.eye(matrix.shape[1]).double() if moments is None else inverse_factor(torch.from_numpy(moments))
    reconstruct(torch.tensor(matrix), factor, columns, group)
    codes, scales, zeros = (
        torch.stack(parts, 1).numpy() for parts in (columns.codes, columns.scales, columns.zero_points)
    )
    return Quantized(codes.astype(np.uint8), scales.astype(np.float32), zeros.astype(np.uint8), group)


def quantize_int4(
    source: Path,
    target: Path,
    chosen: Sequence[Layer],
    group: int,
    moments: Mapping[str, npt.NDArray[np.float64]] | None = None,
) -> None:
    """Write `source` to `target` with the matrices of the `chosen` layers (not embeddings) in four bits."""
    model = onnx.load(str(source))
    graph = model.graph
    by_name = {layer.name: layer for layer in chosen}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        layer = by_name.get(node.name)
        if layer is None:
            nodes.append(node)
            continue
        found = quantized(weight(graph, layer), group, moments[layer.name] if moments is not None else None)
        nodes += _nodes(node, graph, found)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    if not any(opset.domain == "com.microsoft" for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, str(target))


def _nodes(node: onnx.NodeProto, graph: onnx.GraphProto, found: Quantized) -> list[onnx.NodeProto]:
    """In place of a MatMul or Gemm: ONNX Runtime's MatMulNBits, and an addition where there is a bias."""
    out, width = found.codes.shape
    groups = found.scales.shape[1]
    names = [f"{node.name}.{part}" for part in ("weight_4bit", "scales", "zero_points")]
    padded = np.zeros((out, groups * found.group), np.uint8)
    padded[:, :width] = found.codes
    arrays: list[npt.NDArray[Any]] = [
        _pairs(padded).reshape(out, groups, -1),
        found.scales.reshape(-1),
        _pairs(found.zero_points).reshape(-1),
    ]
    graph.initializer.extend(numpy_helper.from_array(a, n) for a, n in zip(arrays, names, strict=True))
    bias = node.input[2] if len(node.input) > 2 else ""
    product = f"{node.name}.product" if bias else node.output[0]
    made = helper.make_node(
        "MatMulNBits",
        [node.input[0], *names],
        [product],
        name=node.name,
        domain="com.microsoft",
        K=width,
        N=out,
        bits=4,
        block_size=found.group,
    )
    return (
        [made, helper.make_node("Add", [product, bias], [node.output[0]], name=f"{node.name}.bias")] if bias else [made]
    )


def _pairs(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Two codes a byte, the first in the low half; a row of odd length ends in a zero."""
    even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    packed: npt.NDArray[np.uint8] = np.bitwise_or(even[:, ::2], np.left_shift(even[:, 1::2], 4), dtype=np.uint8)
    return packed
