"""A model as files: `save_pretrained` output, the tokenizer beside it, and its card (`tasks/model_card.py`)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.model_card import ModelCard, write_card

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def load_model(folder: Path, auto_class: str, *, pretrained: bool = True, **fields: Any) -> PreTrainedModel:
    """The model in fp32 on the CPU, its config fields overridden by `fields`.

    auto_class: HF auto class name; where it adds a head that the files lack, the head is drawn from torch's global
    random numbers. pretrained=False: the same architecture with all weights drawn so.
    """
    import torch
    import transformers

    _quiet()
    config = transformers.AutoConfig.from_pretrained(folder, **fields)
    cls = getattr(transformers, auto_class)
    if not pretrained:
        random: PreTrainedModel = cls.from_config(config)
        return random
    given: dict[str, Any] = {"config": config, "dtype": torch.float32, "use_safetensors": True}
    model: PreTrainedModel
    model, report = cls.from_pretrained(folder, output_loading_info=True, **given)
    backbone = {name for name in model.state_dict() if name.startswith(f"{model.base_model_prefix}.")}
    if backbone and backbone <= set(report["missing_keys"]):
        # Some heads call the backbone otherwise than their siblings (in LlamaForQuestionAnswering it is `transformer`),
        # and HF, finding nothing by that name, leaves it random.
        whole = transformers.AutoModel.from_pretrained(folder, **given)
        model.base_model.load_state_dict(whole.state_dict())
    return model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast | None:
    """The tokenizer beside a model, or None for models that read no text."""
    if not (folder / "tokenizer.json").exists():
        return None
    from transformers import PreTrainedTokenizerFast

    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer


def save_model(model: PreTrainedModel, folder: Path, *, tokenizer_from: Path, card: ModelCard) -> None:
    """Write a model artifact's payload. The tokenizer's files are copied, so that their bytes never change."""
    _quiet()
    model.save_pretrained(folder, max_shard_size="5GB")
    for name in TOKENIZER_FILES:
        if (tokenizer_from / name).exists():
            shutil.copyfile(tokenizer_from / name, folder / name)
    write_card(folder, card)


def _quiet() -> None:
    """A log is read after the fact: no progress bars, and no warning that a new head is new."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def count_parameters(model: PreTrainedModel) -> int:
    """Parameters, a shared one once."""
    return sum(parameter.numel() for parameter in model.parameters())
