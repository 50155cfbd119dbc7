"""The files of a model artifact: what a runtime needs, and `forgeline.json`, which says what the model is for.

model   config.json, model.safetensors, tokenizer files, forgeline.json {"objective", "max_length", "labels"}
onnx    model.onnx, config.json, tokenizer files, forgeline.json as above + {"format": "onnx", "quantization"}
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from infra.errors import StageError

CARD = "forgeline.json"
ONNX = "model.onnx"
WEIGHTS = (".safetensors", ".onnx", ".onnx.data", ".bin")


def read_card(folder: Path) -> dict[str, Any]:
    """`forgeline.json` of a model artifact. Raises StageError where it is missing or names no objective."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageError(f"the model has no readable {CARD}: {error}", hint="Re-make it with this version.") from error
    if not isinstance(card, dict) or not isinstance(card.get("objective"), str):
        raise StageError(f"{CARD} names no objective", hint='It should hold {"objective": ..., "max_length": ...}.')
    return card


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write `forgeline.json`."""
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


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
