"""The layers of an ONNX graph that hold weights: their names, what they read, how they lie."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from infra.errors import StageError
from tasks.compression.onnx.operators import OPERATORS, output_axis
from tasks.compression.reconstruction import check_calibration

Batch = Mapping[str, npt.NDArray[Any]]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Layer:
    """A node with a constant weight. inputs: the tensor it reads. output: the weight's axis of output channels.

    size: how many numbers the weight has.
    """

    name: str
    operator: str
    weight: str
    inputs: str
    output: int
    size: int


def layers(graph: onnx.GraphProto) -> list[Layer]:
    """Every node with a constant weight of floats, in the graph's order."""
    floats = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    found = []
    for node in graph.node:
        operator = OPERATORS.get(node.op_type)
        tensor = floats.get(node.input[operator.weight]) if operator is not None else None
        if operator is None or tensor is None or len(tensor.dims) not in operator.axes:
            continue
        size = int(np.prod(tensor.dims))
        found.append(Layer(node.name, node.op_type, tensor.name, node.input[operator.reads], output_axis(node), size))
    return found


def fold_transposes(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """Hold transposed weights as weights of their own, in place; (name of a weight, name of its transpose) of each.

    The exporter leaves them to the runtime where words in and out share one matrix. Quantization, which looks for
    products with constants, would pass them over.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    folded = [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in constants]
    for node in folded:
        turned = np.ascontiguousarray(numpy_helper.to_array(constants[node.input[0]]).T)
        graph.initializer.append(numpy_helper.from_array(turned, node.output[0]))
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    return [(node.input[0], node.output[0]) for node in folded]


def matching(names: Iterable[str], patterns: Sequence[str], *, where: str) -> list[str]:
    """The names that match a pattern (`*` for any text). Raises StageError where one matches none."""
    known, found = list(names), []
    for pattern in patterns:
        matches = [name for name in known if fnmatchcase(name, pattern)]
        if not matches:
            raise StageError(
                f"no layer is called {pattern!r}", where=where, hint=f"There are, for example, {', '.join(known[:6])}."
            )
        found += matches
    return [name for name in known if name in set(found)]


def input_moments(file: Path, wanted: Sequence[Layer], batches: Iterable[Batch]) -> dict[str, npt.NDArray[np.float64]]:
    """By layer, the sum over tokens of x x^T [in, in] of what it reads, padding left out.

    wanted: products of matrices. Without a mask all rows count; places of pictures are tokens, too. Raises StageError
    where there are fewer tokens than a layer of tokens has inputs; a head reads one row an example.
    """
    import onnxruntime

    model = onnx.load(str(file))
    known = {value.name for value in model.graph.output}
    tensors = list(dict.fromkeys(layer.inputs for layer in wanted))
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in known)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    sums: dict[str, npt.NDArray[np.float64]] = {}
    tokens = dict.fromkeys(tensors, 0)
    for batch in batches:
        values = session.run(tensors, {name: batch[name] for name in names})
        mask = batch["attention_mask"] == 1 if "attention_mask" in batch else None
        examples = len(batch[names[0]])
        for name, value in zip(tensors, values, strict=True):
            rows = value.reshape(-1, value.shape[-1])  # Gemm reads the tokens of all examples in one row after another
            several = len(rows) > examples if mask is None else len(rows) == mask.size
            rows = rows[mask.ravel()] if several and mask is not None else rows
            moment = rows.T.astype(np.float64) @ rows
            sums[name] = sums[name] + moment if name in sums else moment
            tokens[name] += len(rows) if several else len(moment)
    for layer in wanted:
        check_calibration(layer.name, tokens[layer.inputs], len(sums[layer.inputs]))
    return {layer.name: sums[layer.inputs] for layer in wanted}


def weight(graph: onnx.GraphProto, layer: Layer) -> npt.NDArray[np.float32]:
    """Its weight as a matrix [out, what each output channel sums over]."""
    tensor = next(tensor for tensor in graph.initializer if tensor.name == layer.weight)
    array: npt.NDArray[np.float32] = np.moveaxis(numpy_helper.to_array(tensor), layer.output, 0)
    return array.reshape(len(array), -1)
