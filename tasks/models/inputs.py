"""What of a batch a model sees: the objective computes the loss, so never the labels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")


def model_inputs(batch: Mapping[str, T], model: PreTrainedModel) -> dict[str, T]:
    """The entries of a batch that the model's `forward` takes.

    Where `position_ids` separate the documents of a row there is no mask: with one, transformers does not look at
    them. A model of several tasks chooses for each of them.
    """
    chosen: Callable[[Mapping[str, T]], dict[str, T]] | None = getattr(model, "batch_inputs", None)
    if chosen is not None:
        return chosen(batch)
    hidden = "attention_mask" if "position_ids" in batch else None
    return {name: batch[name] for name in accepted(batch, model) if name != hidden}


def accepted(names: Iterable[str], model: PreTrainedModel) -> list[str]:
    """Those of some names that are inputs of the model; token types only where it knows two."""
    types = int(getattr(model.config, "type_vocab_size", 0) or 0) > 1
    known = _parameters(type(model).forward)
    return [n for n in names if n in known and n != "labels" and (types or n != "token_type_ids")]


@lru_cache
def _parameters(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)
