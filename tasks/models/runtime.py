"""One face for every form a model ships in: a Hugging Face folder runs in torch, an ONNX file in ONNX Runtime.

runtime = load_runtime(artifact)
outputs = runtime.outputs(batch)    # what the objective collated -> its outputs by name, float32: [B, C], [B, T, V] ...
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from infra.errors import StageError
from tasks.models.card import read_card
from tasks.models.files import ONNX

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.objective import Objective
    from tasks.stage import InputArtifact

Batch = Mapping[str, npt.NDArray[Any]]
Outputs = dict[str, npt.NDArray[np.float32]]


class Runtime(Protocol):
    """A loaded model."""

    parameters: int

    def outputs(self, batch: Batch) -> Outputs:
        """One forward pass."""
        ...


class TorchRuntime:
    """A model folder in torch, in the number format it was saved in, on the CPU."""

    def __init__(self, folder: Path, objective: Objective, columns: list[int] | None = None) -> None:
        """columns: see `load_runtime`."""
        import torch
        import transformers

        self.torch, self.objective = torch, objective
        found = getattr(transformers, objective.auto_class).from_pretrained(folder, trust_remote_code=False)
        self.model: PreTrainedModel = found.eval()
        if columns is not None:
            from tasks.models.head_rows import reorder

            reorder(self.model, columns)
        self.parameters = int(self.model.num_parameters())

    def outputs(self, batch: Batch) -> Outputs:
        from tasks.models.inputs import model_inputs

        tensors = {name: self.torch.from_numpy(value) for name, value in batch.items()}
        with self.torch.inference_mode():
            found = self.objective.read(self.model(**model_inputs(tensors, self.model)))
        return {name: value.float().numpy() for name, value in found.items()}


class OnnxRuntime:
    """A graph in ONNX Runtime on the CPU."""

    def __init__(self, folder: Path, threads: int, columns: list[int] | None = None) -> None:
        """columns: see `load_runtime`."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(folder / ONNX), options, providers=["CPUExecutionProvider"])
        self.parameters = onnx_parameters(folder / ONNX)
        self.names = [given.name for given in self.session.get_inputs()]
        self.given = [given.name for given in self.session.get_outputs()]
        self.columns = columns

    def outputs(self, batch: Batch) -> Outputs:
        given = {name: batch[name] for name in self.names}
        values = self.session.run(self.given, given)
        found = {name: value.astype(np.float32, copy=False) for name, value in zip(self.given, values, strict=True)}
        if self.columns is not None:  # of a head of classes, which is one output
            found = {name: value[..., self.columns] for name, value in found.items()}
        return found


def onnx_parameters(file: Path) -> int:
    """Numbers in a graph's weights: its initializers of a weight type, without quantization scales and zero points.

    What is packed into bytes counts as the matrix it stands for.
    """
    import onnx

    weights = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    weights |= {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    graph = onnx.load(str(file), load_external_data=False).graph
    packed, count = set(), 0
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            packed |= set(node.input[1:])
            sizes = {attribute.name: attribute.i for attribute in node.attribute}
            count += sizes["K"] * sizes["N"]
    return count + sum(
        int(np.prod(tensor.dims))
        for tensor in graph.initializer
        if tensor.data_type in weights
        and len(tensor.dims) > 0
        and tensor.name not in packed
        and not tensor.name.endswith(("_scale", "_zero_point"))
    )


def import_runtime(type: str, auto_class: str) -> None:
    """Import what loading will need, so that the memory of the libraries is not counted as the model's."""
    if type == "onnx":
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    else:
        import transformers

        getattr(transformers, auto_class)


def load_runtime(artifact: InputArtifact, threads: int = 1, columns: list[int] | None = None) -> Runtime:
    """Load a `model` or `onnx` artifact. Raises StageError on another type.

    columns: which of its classes each output is to be, [C]; None: they stay as they are.
    """
    kinds: dict[str, Any] = {
        "model": lambda: TorchRuntime(artifact.path, read_card(artifact.path).objective, columns),
        "onnx": lambda: OnnxRuntime(artifact.path, threads, columns),
    }
    if artifact.manifest.type not in kinds:
        raise StageError(f"a {artifact.manifest.type} cannot be run", where=artifact.stage)
    runtime: Runtime = kinds[artifact.manifest.type]()
    return runtime
