"""A model that was made elsewhere, with its own head, and the names of its classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from infra.errors import StageError
from tasks.models.head_rows import class_parameters, given_names, listed
from tasks.models.loading import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.objective import Objective


def given_labels(folder: Path, objective: Objective) -> tuple[PreTrainedModel, list[str] | None]:
    """(a given model with its own head, names of its classes where the objective has any).

    Raises StageError where the files have no such head, or one that was trained to be read in another way.
    """
    model = load_model(folder, objective.auto_class, with_head=True)
    said = model.config.architectures or []
    if class_parameters(model) and said and type(model).__name__ not in said:
        raise StageError(
            f"the head is that of a {', '.join(said)}, and this objective reads a {type(model).__name__}",
            where="objective",
            hint="Choose the objective, or its options, by which it was trained: `pooling: model` for Hugging Face's "
            "sequence classification.",
        )
    names = given_names(model.config)
    if objective.named_classes and len(set(names)) < max(2, len(names)):
        raise StageError(
            f"the head knows the classes {listed(names)}", where="objective", hint="At least two of different names."
        )
    return model, names if objective.named_classes else None
