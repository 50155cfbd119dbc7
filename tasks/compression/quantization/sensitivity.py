"""How far each layer's quantization alone moves a model's outputs: which are worth keeping in floating point.

For each layer the model is quantized in that layer and no other, and its outputs on calibration examples are held
against those of the model as it was: mean squared difference, relative to the outputs' own variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tasks.compression.onnx.layers import Batch


def outputs(file: Path, batches: Sequence[Batch]) -> list[npt.NDArray[np.float32]]:
    """What the graph says of each batch, its outputs in one row where it has several.

    Where the batch has a mask and the outputs are a row a token, without those of padding.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    found = []
    for batch in batches:
        values = session.run(None, {name: batch[name] for name in names})
        mask = batch["attention_mask"] == 1 if "attention_mask" in batch else None
        if mask is not None:
            values = [value[mask] if value.ndim == 3 and value.shape[:2] == mask.shape else value for value in values]
        found.append(values[0] if len(values) == 1 else np.concatenate([value.ravel() for value in values]))
    return found


def movement(given: Sequence[npt.NDArray[np.float32]], changed: Sequence[npt.NDArray[np.float32]]) -> float:
    """Mean squared difference over the variance of `given`; infinite where a number is not finite."""
    flat, other = (np.concatenate([part.ravel() for part in parts]).astype(np.float64) for parts in (given, changed))
    if not np.isfinite(other).all():
        return float("inf")
    return float(np.square(flat - other).mean() / max(float(flat.var()), 1e-12))


def sensitivities(
    source: Path,
    names: Sequence[str],
    quantize_only: Callable[[str, Path], None],
    batches: Sequence[Batch],
    scratch: Path,
    progress: Callable[[int, int], None],
) -> dict[str, float]:
    """Of each layer how far it moves the outputs when `quantize_only(layer, file)` quantized nothing else."""
    given, found = outputs(source, batches), {}
    file = scratch / "one-layer.onnx"
    for place, name in enumerate(names):
        quantize_only(name, file)
        found[name] = movement(given, outputs(file, batches))
        progress(place + 1, len(names))
    return found
