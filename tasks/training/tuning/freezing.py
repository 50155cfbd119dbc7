"""Which weights a fine-tuning changes: all, those no pattern names, or the last layers; frozen ones can thaw."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from infra.errors import StageError
from tasks.stage import StageParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Freeze(StageParams):
    """Weights that stay as they are."""

    patterns: list[str] = Field(
        default_factory=list, description="Names of parameters, `*` for any text: `*embeddings*`, `model.layers.0.*`."
    )
    all_but_last: int | None = Field(
        None,
        ge=0,
        description="Only so many layers learn, the last ones, and the head; of a convolutional net, so many blocks. "
        "0: only the head.",
    )
    thaw_over: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the steps over which the frozen layers begin to learn, one after the other from the top, "
        "the embeddings last (Howard and Ruder, 2018). 0: they never do.",
    )

    @model_validator(mode="after")
    def _something(self) -> Freeze:
        if not self.patterns and self.all_but_last is None:
            raise ValueError("give `patterns` or `all_but_last`")
        if self.thaw_over and (self.all_but_last is None or self.patterns):
            raise ValueError("`thaw_over` goes with `all_but_last` alone: layers thaw in order, names do not")
        return self


def frozen_names(model: PreTrainedModel, freeze: Freeze) -> set[str]:
    """Names of the parameters to freeze. Raises StageError if a pattern names none, or all would be frozen."""
    from tasks.models.structure.parts import depths

    names = [name for name, _ in model.named_parameters()]
    frozen: set[str] = set()
    for pattern in freeze.patterns:
        found = {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3)
            raise StageError(
                f"no parameter is named {pattern!r}",
                where="freeze.patterns",
                hint=f"Parameters are named like {', '.join(close or names[:3])}; `*` stands for any text.",
            )
        frozen |= found
    if freeze.all_but_last is not None:
        place = depths(model)
        layers = max(place.values()) - 1
        if freeze.all_but_last > layers:
            raise StageError(f"the model has {layers} layers, not {freeze.all_but_last}", where="freeze.all_but_last")
        frozen |= {name for name in names if place[name] <= layers - freeze.all_but_last}
    if len(frozen) == len(names):
        raise StageError(
            "every parameter would be frozen: nothing is left to learn", where="freeze", hint="Freeze fewer of them."
        )
    return frozen
