"""A Hugging Face model as an ONNX graph, proven equal to the model it came from.

The graph takes the objective's inputs and gives its outputs, by their names; which sizes are free is said by the ports
(`tasks/processors/processor.py`). It is captured by `torch.export` (no Python of the model is left) and compared,
before it is let out, with the parent on batches of several sizes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch

from tasks.compression.onnx.fidelity import differences
from tasks.compression.onnx.layer_names import name_layers
from tasks.compression.onnx.refusal import refusal
from tasks.models.inputs import accepted

if TYPE_CHECKING:
    import onnx_ir
    from transformers import PreTrainedModel

    from tasks.objective import Objective, Port

LARGEST_FILE = 1_500_000_000
AXES = {"tokens": "sequence", "decoder_tokens": "decoder_sequence"}
"""Axes that graphs have always called otherwise."""


class Inference(torch.nn.Module):
    """A model cut down to what inference needs: the objective's inputs in, its outputs out, no cache."""

    def __init__(self, model: PreTrainedModel, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective
        self.names = accepted(objective.inputs, model)
        self.ports = {name: objective.inputs[name] for name in self.names}
        self.without_cache = {"use_cache": False} if hasattr(model.config, "use_cache") else {}

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = dict(zip(self.names, tensors, strict=True))
        return tuple(self.objective.read(self.model(**given, **self.without_cache)).values())

    def outputs(self, batch: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """What the model says of a batch, as `tasks/models/runtime.py` has it."""
        with torch.inference_mode():
            found = self(*(torch.from_numpy(batch[n]) for n in self.names))
        return {name: value.float().numpy() for name, value in zip(self.objective.outputs, found, strict=True)}


def export_onnx(model: PreTrainedModel, objective: Objective, file: Path) -> None:
    """Write `model` to `file` (weights beside it where they exceed 1.5 GB). Raises StageError if it cannot be captured.

    objective: bound to the model. Equal models give equal bytes: source paths and generated names are taken out of the
    graph.
    """
    module = Inference(model, objective).eval()
    batch = objective.processor.example(module.ports, model.config)
    example = tuple(torch.from_numpy(batch[name]) for name in module.names)
    free = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(port.axes) if isinstance(size, str)}
        for port in module.ports.values()
    )
    # Where gradients are asked for, attention with a learned bias (T5) takes another path, which has no graph.
    with _quiet(), torch.no_grad():
        try:
            captured = torch.export.export(module, example, dynamic_shapes=(free,), strict=False)
            program = torch.onnx.export(
                captured,
                example,
                dynamo=True,
                input_names=module.names,
                output_names=list(objective.outputs),
                verbose=False,
            )
        except Exception as error:
            # Anything the model's Python does can go wrong here, in exception classes private to torch.
            raise refusal(error, model) from error
        assert program is not None
        _anonymous(program.model, module.ports)
        name_layers(program.model, module.model)
        large = model.num_parameters() * 4 > LARGEST_FILE
        program.save(str(file), external_data=large)


def largest_difference(model: PreTrainedModel, objective: Objective, file: Path, seed: int = 0) -> float:
    """Largest absolute difference (`fidelity.differences`) of an ONNX file and its parent, over made-up batches."""
    import onnxruntime

    module = Inference(model, objective).eval()
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch in objective.processor.probe(module.ports, model.config, seed):
        given = dict(zip(objective.outputs, session.run(list(objective.outputs), dict(batch)), strict=True))
        expected = module.outputs(batch)
        for name, port in objective.outputs.items():
            mask = batch[port.mask] if port.mask else None
            worst = max(worst, float(differences(expected[name], given[name], mask).max()))
    return worst


def _anonymous(model: onnx_ir.Model, ports: Mapping[str, Port]) -> None:
    """Take out what differs from run to run or shows where it was made, and name the free sizes."""
    import onnx_ir

    graph = model.graph
    sizes: dict[str, str] = {}
    for value in graph.inputs:
        axes = zip(value.shape or (), ports[str(value.name)].axes, strict=True)
        sizes |= {str(dim): AXES.get(name, name) for dim, name in axes if isinstance(name, str)}
    parts: list[Any] = [graph, *model.functions.values()]
    for part in parts:
        part.metadata_props.clear()
        part.doc_string = None
        for node in part.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                # Shapes inside the graph are spelled in generated names; runtimes infer them anyway.
                value.metadata_props.clear()
                value.shape = None if not value.is_graph_output() else value.shape
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
        if value.shape is not None:
            value.shape = onnx_ir.Shape([d if isinstance(d, int) else sizes.get(str(d), str(d)) for d in value.shape])
    model.metadata_props.clear()
    model.doc_string = None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter reports progress on stdout and warns about packages that are not needed."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.onnx._internal.exporter._registration", "onnxscript")
    ]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
