"""A model as files: `save_pretrained` output, what it reads with beside it, and its card (`tasks/models/card.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.models.card import ModelCard, write_card

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from tasks.objective import Processor


def load_model(
    folder: Path,
    auto_class: str | None,
    *,
    pretrained: bool = True,
    new_head: bool = False,
    with_head: bool = False,
    **fields: Any,
) -> PreTrainedModel:
    """The model in fp32 on the CPU, its config fields overridden by `fields`.

    auto_class: HF auto class name; None: the class that the files were saved from. Where it adds a head that the files
    lack, the head is drawn from torch's global random numbers. new_head: also where they have one. with_head: the files
    must have one. pretrained=False: the same architecture with all weights drawn so. Where `fields` name the classes, a
    head of the files gives each the row it has under that name (`tasks/models/head_rows.py`). Raises StageError,
    naming weights or classes, where the files' weights are not those of this architecture.
    """
    import torch
    import transformers

    from tasks.models.checkpoint_fit import check_fit, require_head

    _quiet()
    config = transformers.AutoConfig.from_pretrained(folder, **fields)
    cls: Any = getattr(transformers, auto_class) if auto_class is not None else _saved_from(config)
    if not pretrained:
        random: PreTrainedModel = cls.from_config(config)
        return random
    given: dict[str, Any] = {"config": config, "dtype": torch.float32, "use_safetensors": True}
    given |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
    model, found = cls.from_pretrained(folder, **given)
    if with_head:
        require_head(model, found)
    backbone = {name for name in model.state_dict() if name.startswith(f"{model.base_model_prefix}.")}
    if backbone and backbone <= set(found["missing_keys"]):
        # Some heads call the backbone otherwise than their siblings (in LlamaForQuestionAnswering it is `transformer`),
        # and HF, finding nothing by that name, leaves it random.
        whole, found = transformers.AutoModel.from_pretrained(folder, **given)
        check_fit(whole, found, new_head=new_head, own=False)
        model.base_model.load_state_dict(whole.state_dict())
    else:
        if "id2label" in fields and not new_head:
            found = _by_name(model, folder, found)
        check_fit(model, found, new_head=new_head, own=auto_class is None)
    if new_head:
        for name, module in model.named_modules():
            if name and not _in_body(name, model):
                model._init_weights(module)
    loaded: PreTrainedModel = model
    return loaded


def _saved_from(config: PreTrainedConfig) -> Any:
    """The class that a config says its weights are of; AutoModel where it says none that transformers has."""
    import transformers

    named = getattr(transformers, next(iter(config.architectures or []), ""), None)
    is_model = isinstance(named, type) and issubclass(named, transformers.PreTrainedModel)
    return named if is_model else transformers.AutoModel


def _by_name(model: PreTrainedModel, folder: Path, found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give each class the row of a head in the files that has its name; what is then left of the loading's report."""
    from transformers import AutoConfig

    from tasks.models.head_rows import arrange, class_parameters, given_names

    rows = class_parameters(model) - set(found["missing_keys"])
    if not rows or any(one[0] not in rows for one in found["mismatched_keys"]):
        return found
    arrange(model, folder, rows, given_names(AutoConfig.from_pretrained(folder)), given_names(model.config))
    return {**found, "mismatched_keys": [one for one in found["mismatched_keys"] if one[0] not in rows]}


def head_parameters(model: PreTrainedModel) -> set[str]:
    """Names of the parameters that are not the backbone's."""
    return {name for name, _ in model.named_parameters() if not _in_body(name, model)}


def _in_body(name: str, model: PreTrainedModel) -> bool:
    """Whether a module or parameter belongs to the backbone, not to a head."""
    prefix = model.base_model_prefix
    return not hasattr(model, prefix) or name.partition(".")[0] == prefix


def save_model(model: PreTrainedModel, folder: Path, *, processor: Processor | None, card: ModelCard) -> None:
    """Write a model artifact's payload: weights, config, what it reads with, and its card."""
    _quiet()
    model.save_pretrained(folder, max_shard_size="5GB")
    if processor is not None:
        processor.save(folder)
    write_card(folder, card)


def _quiet() -> None:
    """A log is read after the fact: no progress bars, and no warning that a new head is new."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def count_parameters(model: PreTrainedModel) -> int:
    """Parameters, a shared one once."""
    return sum(parameter.numel() for parameter in model.parameters())
