"""Groups of parameters that share a weight decay and a share of the learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from infra.errors import StageError
from tasks.models.structure.parts import depths, layer_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.training.settings import OptimizerParams


@dataclass(frozen=True)
class Tuning:
    """How the layers of a pretrained model learn beside each other.

    layer_decay: a layer's rate is this times that of the layer above it (Howard and Ruder, 2018; BEiT, ELECTRA).
    thaw_over: share of the steps over which the parameters in `thawing` begin to learn, from the top down.
    rates: of single parameters, by name, how many times the learning rate they have.
    scored: parameters of which the optimizer adds up how far each weight moved away from zero.
    """

    layer_decay: float = 1.0
    thaw_over: float = 0.0
    thawing: frozenset[str] = field(default_factory=frozenset)
    rates: Mapping[str, float] = field(default_factory=dict)
    scored: frozenset[str] = field(default_factory=frozenset)


def parameter_groups(
    model: PreTrainedModel, optimizer: OptimizerParams, tuning: Tuning | None = None
) -> list[dict[str, Any]]:
    """Groups for an optimizer, of the parameters that are trained, in the model's order.

    Beside `params` and `weight_decay` (matrices only, never norms and biases) each says: `rate`, its share of the
    learning rate; `thaws`, the share of the steps after which it learns; `muon`, whether Muon updates it, which is for
    the matrices of the layers; `scored`, as in `Tuning`. Raises StageError for Muon where a model has no such matrices.
    """
    tuning = tuning or Tuning()
    place = None if replace(tuning, rates={}, scored=frozenset()) == Tuning() else depths(model)
    layers = tuple(f"{name}." for name in layer_names(model)) if optimizer.name == "muon" else ()
    if layers and not any(p.ndim == 2 and name.startswith(layers) for name, p in model.named_parameters()):
        raise StageError(
            f"muon updates matrices, and the blocks of {type(model).__name__} have none: they are convolutions",
            where="optimizer.name",
            hint="Use adamw or lion.",
        )
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        matrix = parameter.ndim >= 2
        rate, thaws = 1.0, 0.0
        if place is not None:
            top = max(place.values())
            rate = tuning.layer_decay ** (top - place[name])
            if name in tuning.thawing:
                thaws = _thaws(name, place, tuning)
        rate = tuning.rates.get(name, rate)
        muon = parameter.ndim == 2 and name.startswith(layers)
        scored = name in tuning.scored
        group = found.setdefault(
            (not matrix, rate, thaws, muon, scored),
            {
                "params": [],
                "weight_decay": optimizer.weight_decay if matrix else 0.0,
                "rate": rate,
                "thaws": thaws,
                "muon": muon,
                "scored": scored,
            },
        )
        group["params"].append(parameter)
    return [found[key] for key in sorted(found, key=lambda key: (key[0], -key[1], *key[2:]))]


def group_rate(group: Mapping[str, Any], learning_rate: float, progress: float) -> float:
    """The rate of a group where `progress` of the steps are done, given that of the schedule."""
    return 0.0 if progress < group["thaws"] else learning_rate * float(group["rate"])


def _thaws(name: str, place: dict[str, int], tuning: Tuning) -> float:
    """The highest frozen depth thaws after one stretch, the lowest after `thaw_over`."""
    frozen = sorted({place[other] for other in tuning.thawing}, reverse=True)
    return tuning.thaw_over * (frozen.index(place[name]) + 1) / len(frozen)
