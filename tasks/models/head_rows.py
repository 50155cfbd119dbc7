"""Which row of a classifier's head is which class: by the names in its config (`id2label`), never by their numbers.

A model that goes on learning meets the classes in the order of its data. A class that is new and sorts first, or a head
of the same size for other classes, would otherwise give every class another's row, and nothing would fail.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import StageError
from tasks.data.plain_values import plain_names

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


UNNAMED = re.compile(r"LABEL_\d+")
"""How transformers calls classes that nobody named."""


def class_parameters(model: PreTrainedModel) -> frozenset[str]:
    """Names of the parameters that have a row for each class: those that grow by one with a class more."""
    import copy

    import torch

    more: Any = copy.deepcopy(model.config)
    more.num_labels = more.num_labels + 1
    with torch.device("meta"):
        larger = {name: p.shape for name, p in type(model)(more).named_parameters()}
    return frozenset(name for name, p in model.named_parameters() if larger[name] != p.shape)


def given_names(config: PreTrainedConfig) -> list[str]:
    """Names of the classes as a config has them, in the order of the rows, spelled as data have them."""
    names: Any = config.id2label
    return plain_names([str(names[number]) for number in sorted(names)])


def matched(own: Sequence[str], rows: int, wanted: Sequence[str]) -> list[int | None]:
    """For each wanted class its row in a head of so many `rows`, whose classes are called `own`; None: it is new.

    Raises StageError where the head's classes have no names, or some are not wanted any more.
    """
    if list(own) == list(wanted) and len(own) == rows:
        return list(range(rows))
    gone = [name for name in own if name not in wanted]
    hint = "`new_head: true` of a `finetune` stage begins with a new head."
    if len(own) != rows or len(set(own)) < rows or (gone and all(UNNAMED.fullmatch(name) for name in own)):
        known = "one number" if rows == 1 else f"{rows} classes without names of their own"
        raise StageError(
            f"the model has a head for {known}, and the data have the classes {listed(wanted)}",
            where="model",
            hint=f"{hint} If it is known which row is which class, write it into the model's config.json: `id2label`.",
        )
    if gone:
        raise StageError(
            f"the model knows classes that the data do not have: {listed(gone)}; the data have {listed(wanted)}",
            where="model",
            hint=f"Add examples of them, or list them in the dataset's `labels`. {hint}",
        )
    places = {name: row for row, name in enumerate(own)}
    return [places.get(name) for name in wanted]


def arrange(
    model: PreTrainedModel, folder: Path, names: frozenset[str], own: Sequence[str], wanted: Sequence[str]
) -> None:
    """Put the rows that `folder` has for its classes `own` where the model has the wanted ones, in place.

    names: the head's parameters with a row for each class. Rows of new classes stay as the model drew them. Raises
    StageError as `matched` does.
    """
    import torch

    from tasks.models.stored_weights import stored_tensors

    stored = dict(stored_tensors(folder, names))
    lost = sorted(names - stored.keys())
    if lost:
        raise StageError(
            f"the files call {lost[0]} otherwise, so that its rows cannot be matched with classes by name",
            where="model",
            hint="`new_head: true` of a `finetune` stage begins with a new head.",
        )
    for name, given in stored.items():
        rows = enumerate(matched(own, len(given), wanted))
        places, known = zip(*((place, row) for place, row in rows if row is not None), strict=True)
        with torch.no_grad():
            parameter = model.get_parameter(name)
            parameter[list(places)] = given[list(known)].to(parameter.dtype)


def reorder(model: PreTrainedModel, places: Sequence[int]) -> None:
    """Let class i of a loaded model be the one that stands at `places[i]` now, its name with it, in place."""
    import torch

    names = given_names(model.config)
    for name in class_parameters(model):
        parameter = model.get_parameter(name)
        with torch.no_grad():
            parameter.copy_(parameter[list(places)].clone())
    model.config.id2label = {new: names[old] for new, old in enumerate(places)}
    model.config.label2id = {name: number for number, name in model.config.id2label.items()}


def listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:10]))
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"
