"""A student cut from the layers of its teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.errors import StageError
from tasks.models.structure.layer_subset import with_layers
from tasks.models.structure.transformer import layer_stacks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def chosen_layers(teacher_layers: int, student_layers: int) -> list[int]:
    """Teacher layers a student starts from: evenly spaced, the last included (the head reads its output)."""
    if not 1 <= student_layers <= teacher_layers:
        raise StageError(
            f"a student of {student_layers} layers cannot be cut from a teacher of {teacher_layers}",
            where="layers",
            hint=f"Choose 1 to {teacher_layers}.",
        )
    return [(i + 1) * teacher_layers // student_layers - 1 for i in range(student_layers)]


def student_from(teacher: PreTrainedModel, num_layers: int) -> PreTrainedModel:
    """A copy of the teacher with `num_layers` of its layers, weights included; of an encoder-decoder so many of each.

    A stack that has fewer stays whole, as long as the other has enough.
    """
    depths = [len(stack) for _, stack in layer_stacks(teacher)]
    wanted = [min(num_layers, n) if num_layers <= max(depths) else num_layers for n in depths]
    return with_layers(teacher, [chosen_layers(n, count) for n, count in zip(depths, wanted, strict=True)])
