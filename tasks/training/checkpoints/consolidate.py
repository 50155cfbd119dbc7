"""Weights in Hugging Face's format out of any checkpoint: without a GPU, whatever ranks and ZeRO stage wrote it."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from infra.errors import UsageError

if TYPE_CHECKING:
    from infra.checkpoints import Checkpoint


def consolidate(checkpoint: Checkpoint, target: Path) -> int:
    """Write config.json and model.safetensors (fp32) into the new folder `target`; returns the number of weights.

    Tied weights are stored once, as `save_pretrained` does. Raises UsageError if the folder is not empty, StageError if
    the shards lack a part.
    """
    from safetensors.torch import save_file

    from tasks.training.engine.shards import ShardReader

    if target.exists() and any(target.iterdir()):
        raise UsageError("the folder is not empty", where=str(target), hint="Name a new one.")
    shards = ShardReader(checkpoint.path)
    tensors = {
        name: shards.read("weights", name, 0, math.prod(shape)).reshape(shape)
        for name, shape in checkpoint.state["shapes"].items()
    }
    target.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(checkpoint.path / "config.json", target / "config.json")
    return sum(tensor.numel() for tensor in tensors.values())
