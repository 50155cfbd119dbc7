"""The files of a model artifact: what a runtime needs, and its card (`tasks/models/card.py`).

model   config.json, model.safetensors, tokenizer files, forgeline.json
onnx    model.onnx, config.json, tokenizer files, forgeline.json
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tasks.models.card import CARD

ONNX = "model.onnx"
WEIGHTS = (".safetensors", ".onnx", ".onnx.data", ".bin")


def is_weights(path: Path) -> bool:
    """Whether a file holds weights or a graph: what a device has to store and load."""
    return path.name.endswith(WEIGHTS)


def copy_companions(source: Path, target: Path) -> None:
    """Copy what stands beside the weights: the config and the tokenizer."""
    for path in sorted(source.iterdir()):
        if path.is_file() and not is_weights(path) and path.name != CARD:
            shutil.copyfile(path, target / path.name)


def shipped_bytes(folder: Path) -> int:
    """Bytes of weight and graph files: the `size_mb` of evaluations, in units of 10^6."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file() and is_weights(path))
