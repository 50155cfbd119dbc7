"""The objective that a model on disk was trained for, as every stage works with it: bound to what lies beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tasks.models.card import read_card
from tasks.objective import Objective
from tasks.stage import InputArtifact


def trained_for(folder: Path, labels: Sequence[str] | None = None, limit: int | None = None) -> Objective:
    """Of a `model` or `onnx` folder. labels: its classes in another order; limit: another `max_length`; None: its own.

    Raises StageError if nobody has trained it for anything yet.
    """
    card = read_card(folder)
    return bound_to(card.objective, folder, labels, limit)


def bound_to(
    objective: Objective,
    folder: Path,
    labels: Sequence[str] | None = None,
    limit: int | None = None,
    data: InputArtifact | None = None,
) -> Objective:
    """Any objective, as a model that begins with these files reads its examples.

    data: decides the processor where the files bring none.
    """
    from transformers import AutoConfig

    processor = objective.load_processor(folder, limit or read_card(folder).max_length)
    if processor is None and data is not None:
        processor = objective.new_processor(data)
    return objective.bound(processor, labels, AutoConfig.from_pretrained(folder))
