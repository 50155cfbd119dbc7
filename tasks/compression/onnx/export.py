"""A Hugging Face model as an ONNX graph, proven equal to the model it came from.

The graph takes what the objective calls its inputs (`input_ids` and `attention_mask`, and where there are any
`token_type_ids` and `decoder_input_ids`), int64 [batch, sequence] with both sizes free, and gives `logits`, the tensor
that the objective's predictions are made of.
It is captured by `torch.export` (no Python of the model is left) and compared, before it is let out, with the parent on
batches of several shapes, padded on either side.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from tasks.compression.onnx.fidelity import differences
from tasks.compression.onnx.refusal import refusal
from tasks.models.inputs import accepted

if TYPE_CHECKING:
    import onnx_ir
    from transformers import PreTrainedModel

    from tasks.objective import Objective

LARGEST_FILE = 1_500_000_000
WEIGHTED = ("MatMul", "Gemm", "Gather")
"""Operators with a matrix of weights. Gather is the embedding table, in small models the largest weight of all."""
Batch = dict[str, npt.NDArray[np.int64]]


class Logits(torch.nn.Module):
    """A model cut down to what inference needs: the tensors called `names` in, logits out, no cache."""

    def __init__(self, model: PreTrainedModel, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective
        self.names = accepted(objective.inputs, model)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        given = dict(zip(self.names, tensors, strict=True))
        return self.objective.output(self.model(**given, use_cache=False))

    def logits(self, batch: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        """What the model says of a batch, as `tasks/models/runtime.py` has it."""
        with torch.inference_mode():
            found: npt.NDArray[np.float32] = self(*(torch.from_numpy(batch[n]) for n in self.names)).float().numpy()
        return found


def export_onnx(model: PreTrainedModel, objective: Objective, file: Path, max_length: int) -> None:
    """Write `model` to `file` (weights beside it where they exceed 1.5 GB). Raises StageError if it cannot be captured.

    Equal models give equal bytes: source paths and generated names are taken out of the graph.
    """
    module = Logits(model, objective).eval()
    batch = next(iter(random_batches(model.config, module.names, max_length, seed=0, shapes=[(2, min(7, max_length))])))
    example = tuple(torch.from_numpy(batch[name]) for name in module.names)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    # Where gradients are asked for, attention with a learned bias (T5) takes another path, which has no graph.
    with _quiet(), torch.no_grad():
        try:
            captured = torch.export.export(module, example, dynamic_shapes=((free,) * len(example),), strict=False)
            program = torch.onnx.export(
                captured, example, dynamo=True, input_names=module.names, output_names=["logits"], verbose=False
            )
        except Exception as error:
            # Anything the model's Python does can go wrong here, in exception classes private to torch.
            raise refusal(error, model) from error
        assert program is not None
        _anonymous(program.model)
        _name_layers(program.model, module.model)
        large = model.num_parameters() * 4 > LARGEST_FILE
        program.save(str(file), external_data=large)


def random_batches(
    config: Any, names: Sequence[str], max_length: int, seed: int, shapes: list[tuple[int, int]] | None = None
) -> Iterator[Batch]:
    """Batches like real ones: random ids, rows of ragged length, padded right, then left. The first row is full.

    Those of `names` they hold: token types are 1 in the second half of a row; a decoder reads a length of its own.
    shapes: [B, T] of each; by default a single token, one long row, and ragged batches up to the longest.
    """
    rng = np.random.default_rng(seed)
    long = max(1, min(max_length, 512))
    pad = config.pad_token_id if isinstance(config.pad_token_id, int) else 0
    for size, length in shapes or [(1, 1), (1, long), (2, min(3, long)), (5, min(33, long)), (8, long)]:
        ids = rng.integers(0, config.vocab_size, (size, length), dtype=np.int64)
        # A pad token inside a text would end it for models that look for the last token that is no padding.
        ids[ids == pad] = (pad + 1) % config.vocab_size
        lengths = np.r_[length, rng.integers(1, length + 1, size - 1)][:, None]
        places = np.arange(length)[None, :]
        for mask in (places < lengths, places >= length - lengths):
            found = {
                "input_ids": np.where(mask, ids, pad),
                "attention_mask": mask.astype(np.int64),
                "token_type_ids": np.broadcast_to(places >= length // 2, mask.shape).astype(np.int64),
                "decoder_input_ids": np.ascontiguousarray(ids[:, : max(1, length * 2 // 3)]),
            }
            yield {name: found[name] for name in names}
            if size == 1:
                break


def largest_difference(
    model: PreTrainedModel, objective: Objective, file: Path, max_length: int, seed: int = 0
) -> float:
    """Largest absolute difference (`fidelity.differences`) of an ONNX file and its parent, over `random_batches`."""
    import onnxruntime

    module = Logits(model, objective).eval()
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch in random_batches(model.config, module.names, max_length, seed):
        given = session.run(["logits"], dict(batch))[0]
        worst = max(worst, float(differences(module.logits(batch), given, batch["attention_mask"]).max()))
    return worst


def _anonymous(model: onnx_ir.Model) -> None:
    """Take out what differs from run to run or tells where it was made, and name the two free sizes."""
    import onnx_ir

    graph = model.graph
    sizes: dict[str, str] = {}
    for value in graph.inputs:
        sequence = "decoder_sequence" if value.name == "decoder_input_ids" else "sequence"
        sizes |= {str(dim): name for dim, name in zip(value.shape or (), ("batch", sequence), strict=True)}
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


def _name_layers(exported: onnx_ir.Model, model: PreTrainedModel) -> None:
    """Call the nodes that multiply by a weight what the model calls the layer.

    The exporter keeps a weight's name only where it keeps its layout, and people choose layers by their names.
    """
    layers: dict[tuple[bool, bytes], list[str]] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.nn.Parameter) and weight.ndim == 2:
            layers.setdefault((isinstance(module, torch.nn.Embedding), _digest(weight.detach())), []).append(name)
    for node in exported.graph.all_nodes():
        for value in node.inputs if node.op_type in WEIGHTED else ():
            producer = value.producer() if value is not None else None
            if producer is not None and producer.op_type == "Transpose":
                value = producer.inputs[0]
            if value is None or value.const_value is None or len(value.const_value.shape) != 2:
                continue
            names = layers.get((node.op_type == "Gather", _digest(torch.from_numpy(value.const_value.numpy()))))
            if names:
                node.name = names.pop(0)


def _digest(weight: torch.Tensor) -> bytes:
    """The same for a matrix and its transpose."""
    return min(hashlib.sha256(form.contiguous().numpy().tobytes()).digest() for form in (weight, weight.T))


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
