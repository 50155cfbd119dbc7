"""The kinds of what models produce, found in their folders, and the fields of stages that take settings of any kind."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

from infra.errors import StageError
from tasks.generation.product import Product
from tasks.objective import Objective, objective_class, objective_names
from tasks.stage import StageParams

DEFAULT = "text"
"""The kind whose settings a stage has where a pipeline file gives none."""


@cache
def kinds() -> dict[str, type[Product]]:
    """Name of each kind -> its class, `DEFAULT` first, then by name."""
    files = sorted(Path(__file__).parent.glob("*/product.py"), key=lambda file: (file.parent.name != DEFAULT, file))
    package = __name__.rpartition(".")[0]
    return {
        file.parent.name: importlib.import_module(f"{package}.{file.parent.name}.product").PRODUCT for file in files
    }


def product_of(objective: Objective, *, where: str) -> type[Product]:
    """The kind that models of this objective produce. Raises StageError where they produce nothing."""
    if objective.produces is None:
        able = ", ".join(name for name in objective_names() if objective_class(name).produces is not None)
        raise StageError(
            f"objective {objective.name} generates nothing",
            where=where,
            hint=f"Objectives that generate: {able}. `evaluate` scores the others.",
        )
    return kinds()[objective.produces]


if TYPE_CHECKING:
    Decoding = StageParams
    Step = Any
    Metric = str
else:
    Decoding = Union[tuple(kind.settings for kind in kinds().values())]  # noqa: UP007 (of a tuple)
    """Type of a field with the settings of one kind."""
    Step = Union[tuple(kind.step for kind in kinds().values())]  # noqa: UP007
    """Type of a step that outputs of one kind go through."""
    Metric = Literal[tuple(sorted({name for kind in kinds().values() for name in kind.metric_names}))]
    """Type of a field that names a metric of one kind."""
