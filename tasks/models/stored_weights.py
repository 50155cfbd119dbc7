"""The tensors of a model folder's safetensors files, by name, without building a model of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights: one, or those that its index lists."""
    if (folder / INDEX).exists():
        listed = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return [folder / name for name in sorted(set(listed.values()))]
    return [folder / ONE]


def stored_tensors(folder: Path, names: frozenset[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of each, one at a time; names: only these."""
    from safetensors import safe_open

    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                if names is None or name in names:
                    yield name, file.get_tensor(name)
