"""Low-rank updates beside frozen weights (Hu et al., 2021), through peft; merged when training is over.

What ships is a plain model: no reader of it needs peft.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from infra.errors import StageError
from tasks.stage import StageParams

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Lora(StageParams):
    """Which matrices get an update, and of which rank."""

    r: int = Field(8, ge=1, description="Rank of the updates.")
    alpha: float = Field(16.0, gt=0, description="An update counts alpha / r times.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the updates.")
    targets: list[str] | None = Field(
        None,
        min_length=1,
        description="Ends of the names of the modules that get one, e.g. `q_proj`. None: all of the backbone.",
    )


def insert(model: PreTrainedModel, lora: Lora, *, head: set[str]) -> PreTrainedModel:
    """Put updates into the model, in place: they and the parameters named in `head` learn, nothing else.

    Raises StageError if a target matches no module.
    """
    try:
        import peft
    except ImportError as error:
        raise StageError("peft is not installed", where="lora", hint="pip install 'forgeline[peft]'.") from error
    linear = _linear(model, head)
    if not linear:
        raise StageError(
            f"{type(model).__name__} has no linear layers for low-rank updates: it is made of convolutions",
            where="lora",
            hint="Leave out `lora`. `freeze: {all_but_last: N}` trains only the last N blocks and the head.",
        )
    for target in lora.targets or ():
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            ends = sorted({name.rpartition(".")[2] for name in linear})
            raise StageError(
                f"no matrix is named {target!r}", where="lora.targets", hint=f"There are {', '.join(ends)}."
            )
    targets = [n for n in linear if any(n == t or n.endswith(f".{t}") for t in lora.targets or [n])]
    config = peft.LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)  # type: ignore[arg-type]
    peft.inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name in head)
    return model


def merge(model: PreTrainedModel) -> PreTrainedModel:
    """The model with the updates in its weights and nothing beside them, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    model.requires_grad_(True)
    return model


def _linear(model: PreTrainedModel, head: set[str]) -> list[str]:
    """Names of the matrices of the backbone that multiply: not its embeddings."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, Linear | Conv1D) and f"{name}.weight" not in head
    ]


def largest_change(before: torch.Tensor, after: torch.Tensor) -> float:
    """How far merging moved an output, as a share of its size. Raises StageError if it is no rounding."""
    away: Any = (before - after).abs().max() / before.abs().max().clamp(min=1e-6)
    if not float(away) < 1e-3:
        raise StageError(
            f"merging changed the output by {float(away):.2g} of its size", where="lora", hint="The model is not kept."
        )
    return float(away)
