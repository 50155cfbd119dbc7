"""Attention heads leave, whole groups of those that share keys and values, as many in every layer.

For families whose config says how wide a head is (`head_dim`: Llama, Qwen, Mistral and their kin). Where it does not
(BERT, GPT-2, T5), a head is as wide as the hidden size over the number of heads, and no config describes what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from infra.errors import StageError
from tasks.compression.pruning.calibration import Batch
from tasks.compression.pruning.gates import gate_importance
from tasks.models.structure.transformer import layer_stacks

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from tasks.objective import Objective


@dataclass(frozen=True)
class Attention:
    """One layer's projections by module name."""

    query: str
    key: str
    value: str
    outward: str


def find_attentions(model: PreTrainedModel) -> list[Attention]:
    """The attention of every layer. Raises StageError for a family whose heads cannot go."""
    if model.config.is_encoder_decoder or getattr(model.config, "head_dim", None) is None:
        raise StageError(
            f"{type(model).__name__} cannot be left with fewer heads: its config does not say how wide they are",
            where="method",
            hint="`ffn_width` and `layers` work with every family.",
        )
    names = {name for name, _ in model.named_modules()}
    found = []
    (stack, layers), *_ = layer_stacks(model)
    for index in range(len(layers)):
        parts = [f"{stack}.{index}.self_attn.{part}_proj" for part in "qkvo"]
        if not names.issuperset(parts):
            raise StageError(
                f"the attention of {type(model).__name__} has other parts than q_proj, k_proj, v_proj and o_proj",
                where="method",
                hint="`ffn_width` and `layers` work with every family.",
            )
        found.append(Attention(*parts))
    return found


def head_importance(model: PreTrainedModel, batches: Sequence[Batch], objective: Objective) -> list[torch.Tensor]:
    """Per layer [groups]: how far the loss would move without each group of heads (`gates.py`)."""
    outward = [attention.outward for attention in find_attentions(model)]
    width = model.config.head_dim * model.config.num_attention_heads // model.config.num_key_value_heads
    return gate_importance(model, batches, objective, outward, width)


def without_heads(model: PreTrainedModel, importance: Sequence[torch.Tensor], keep: float) -> PreTrainedModel:
    """A new model with the most important share `keep` of each layer's groups of heads, at least one.

    Fewer where the family's config refuses that many: Llama's wants a number that divides the hidden size.
    Raises StageError if none would go.
    """
    groups, heads, width = (
        getattr(model.config, name) for name in ("num_key_value_heads", "num_attention_heads", "head_dim")
    )
    count = max(1, round(keep * groups))
    if count == groups:
        raise StageError(
            f"keep {keep} leaves all {groups} groups of heads",
            where="keep",
            hint=f"Use at most {1 - 1 / groups:.3f}." if groups > 1 else "A layer has one group of heads at least.",
        )
    count, config = next(
        (fewer, config)
        for fewer in range(count, 0, -1)
        if (config := _config(model.config, fewer, fewer * heads // groups)) is not None
    )
    smaller: PreTrainedModel = type(model)(config).train(False)
    state = dict(model.state_dict())
    for attention, score in zip(find_attentions(model), importance, strict=True):
        chosen = torch.sort(torch.argsort(score, descending=True, stable=True)[:count]).values

        def rows(size: int, chosen: torch.Tensor = chosen) -> torch.Tensor:
            return (chosen[:, None] * size + torch.arange(size)).flatten()

        for name, size in (
            (attention.query, width * heads // groups),
            (attention.key, width),
            (attention.value, width),
        ):
            for part in ("weight", "bias"):
                if f"{name}.{part}" in state:
                    state[f"{name}.{part}"] = state[f"{name}.{part}"][rows(size)]
        place = f"{attention.outward}.weight"
        state[place] = state[place][:, rows(width * heads // groups)]
    smaller.load_state_dict(state)
    return smaller


def _config(given: PreTrainedConfig, groups: int, heads: int) -> PreTrainedConfig | None:
    """The same with so many; None where the family does not take them."""
    from huggingface_hub.errors import StrictDataclassClassValidationError

    fields = {**given.to_dict(), "num_key_value_heads": groups, "num_attention_heads": heads}
    try:
        return type(given).from_dict(fields)
    except StrictDataclassClassValidationError:
        return None
