"""A new model from a Hugging Face model type and config fields, with every field checked against that config."""

from __future__ import annotations

import dataclasses
import difflib
from typing import TYPE_CHECKING, Any

from infra.errors import ConfigError, Problem, StageError
from tasks.training.padding import padding_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

POSITIONS = ("position_embeddings", "wpe", "embed_positions")
"""How modules with a table of positions are called."""
SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")


def new_model(
    auto_class: str, model_type: str, fields: dict[str, Any], tokenizer: PreTrainedTokenizerFast | None, *, where: str
) -> PreTrainedModel:
    """A model with random weights, drawn from torch's global random numbers.

    The tokenizer, where there is one, sets vocab_size and the special token ids, those a decoder begins and ends with
    among them; fields that are given win. Raises ConfigError on an unknown type, unknown fields, or values the config
    or the model refuses.
    """
    import transformers
    from transformers import AutoConfig

    cls = _config_class(model_type, where)
    known = _known_fields(cls)
    problems = [
        Problem(where, name, f"unknown field of a {model_type} config{_did_you_mean(name, known)}")
        for name in sorted(fields)
        if name not in known
    ]
    if problems:
        raise ConfigError(problems)
    # By its own name, because some fields follow from others before a config knows the names it shares with all.
    own = {cls.attribute_map.get(name, name): value for name, value in fields.items()}
    values = {**_from_tokenizer(tokenizer, cls, known), **own}
    try:
        config = AutoConfig.for_model(model_type, **values)
        model: PreTrainedModel = getattr(transformers, auto_class).from_config(config)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError([Problem(where, "", f"{auto_class} refuses this {model_type}: {error}")]) from error
    except Exception as error:
        # huggingface_hub's validation errors share no base class with ValueError.
        if type(error).__module__.partition(".")[0] != "huggingface_hub":
            raise
        raise ConfigError([Problem(where, "", str(error).replace("\n", " "))]) from error
    return model


def longest_text(model: PreTrainedModel) -> int | None:
    """Tokens a model has learned positions for; None where positions are no table (rotary, relative).

    RoBERTa counts positions from behind its padding id, so that it reads fewer tokens than it has positions.
    """
    from torch import nn

    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in POSITIONS:
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            found.append(module.num_embeddings - unused - int(getattr(module, "offset", 0)))
    return min(found, default=None)


def check_length(model: PreTrainedModel, length: int, *, where: str) -> None:
    """Raises StageError if a model cannot read texts of `length` tokens, which would otherwise end it in a lookup."""
    longest = longest_text(model)
    if longest is None or length <= longest:
        return
    table = int(getattr(model.config, "max_position_embeddings", longest))
    raise StageError(
        f"the model has positions for texts of {longest} tokens, and these have up to {length}",
        where=where,
        hint=f"Give a new model `max_position_embeddings: {table + length - longest}`, or use shorter texts.",
    )


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None, *, where: str) -> None:
    """Raises StageError if a model has no embedding for some of the tokens. It may have more than there are."""
    size = getattr(model.config, "vocab_size", None)
    if tokenizer is not None and size is not None and size < len(tokenizer):
        raise StageError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {size}",
            where=where,
            hint="A new model takes `vocab_size` from its tokenizer: leave it out. One made elsewhere needs the "
            "tokenizer it was made with, and embeddings resized for tokens that were added.",
        )


def _config_class(model_type: str, where: str) -> Any:
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        near = _did_you_mean(model_type, list(CONFIG_MAPPING.keys()))
        raise ConfigError([Problem(where, "type", f"unknown model type {model_type!r}{near}")])
    return CONFIG_MAPPING[model_type]


def _known_fields(cls: Any) -> list[str]:
    own = [field.name for field in dataclasses.fields(cls)]
    return sorted({*own, *cls.attribute_map, "num_labels"} - {"transformers_version", "architectures", "dtype"})


def _from_tokenizer(tokenizer: PreTrainedTokenizerFast | None, cls: Any, known: list[str]) -> dict[str, Any]:
    if tokenizer is None:
        return {}
    values = {name: getattr(tokenizer, name) for name in SPECIAL_TOKENS if name in known}
    if "pad_token_id" in values:
        values["pad_token_id"] = padding_id(None, tokenizer)
    return {"vocab_size": len(tokenizer), **values, **_decoder_ids(tokenizer, cls(), known)}


def _decoder_ids(tokenizer: PreTrainedTokenizerFast, usual: Any, known: list[str]) -> dict[str, Any]:
    """What the decoder of an encoder-decoder begins and ends with: the token that has that role in the type's defaults.

    T5 begins with padding (its config has no field for it), BART with the end of a text, which it also ends with.
    """
    if not usual.is_encoder_decoder:
        return {}
    roles = {getattr(usual, name, None): getattr(tokenizer, name) for name in reversed(SPECIAL_TOKENS[:3])}
    roles.pop(None, None)
    start = roles.get(getattr(usual, "decoder_start_token_id", None), tokenizer.pad_token_id)
    ends = {"forced_eos_token_id": tokenizer.eos_token_id} if "forced_eos_token_id" in known else {}
    return {"decoder_start_token_id": start, **ends}


def _did_you_mean(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else ""
