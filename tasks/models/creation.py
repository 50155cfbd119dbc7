"""A new model from a Hugging Face model type and config fields, with every field checked against that config."""

from __future__ import annotations

import dataclasses
import difflib
from typing import TYPE_CHECKING, Any

from infra.errors import ConfigError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.objective import Processor


def new_model(
    auto_class: str, model_type: str, fields: dict[str, Any], processor: Processor | None, *, where: str
) -> PreTrainedModel:
    """A model with random weights, drawn from torch's global random numbers.

    The processor, where there is one, sets what follows from it: a tokenizer vocab_size and the special token ids,
    those of a decoder among them. Fields that are given win. Raises ConfigError on an unknown type, unknown fields, or
    values the config or the model refuses.
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
    values = {**(processor.config(cls, known) if processor else {}), **own}
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


def _config_class(model_type: str, where: str) -> Any:
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        near = _did_you_mean(model_type, list(CONFIG_MAPPING.keys()))
        raise ConfigError([Problem(where, "type", f"unknown model type {model_type!r}{near}")])
    return CONFIG_MAPPING[model_type]


def _known_fields(cls: Any) -> list[str]:
    own = [field.name for field in dataclasses.fields(cls)]
    return sorted({*own, *cls.attribute_map, "num_labels"} - {"transformers_version", "architectures", "dtype"})


def _did_you_mean(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else ""
