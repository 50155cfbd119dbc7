"""The files of a model that was made elsewhere, brought into the form of ours: safetensors and a fast tokenizer."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from infra.errors import StageError
from tasks.training.model_files import TOKENIZER_FILES, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

NO_LIMIT = 1_000_000
"""transformers writes a number beyond this where a tokenizer has no longest text."""


def require_weights(folder: Path, *, allow_pickle: bool) -> None:
    """Raises StageError if there are no weights that may be read."""
    pickled = sorted(folder.glob("*.bin"))
    if _stored(folder):
        return
    if not pickled:
        raise StageError("there are no weights", where=folder.name, hint="They should be in model.safetensors.")
    if not allow_pickle:
        raise StageError(
            f"the weights are a pickle ({pickled[0].name}), which can run code when it is opened",
            where=folder.name,
            hint="Convert them to safetensors, or set `allow_pickle: true` if you trust who made them.",
        )


def bring_weights(folder: Path, output: Path, *, move: bool) -> None:
    """Config and weights; pickled ones are rewritten. move: the folder needs its safetensors no more."""
    shutil.copyfile(folder / "config.json", output / "config.json")
    stored = _stored(folder)
    for path in stored:
        (shutil.move if move else shutil.copyfile)(path, output / path.name)
    if not stored:
        _rewrite(sorted(folder.glob("*.bin")), output / "model.safetensors")


def _stored(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")])


def _rewrite(pickled: list[Path], target: Path) -> None:
    """Tensors of pickles as safetensors, tied ones once; anything in them but tensors is refused."""
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for path in pickled:
        try:
            tensors |= torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, TypeError) as error:
            raise StageError(f"{path.name} holds no plain tensors: {error}", where=path.parent.name) from error
    save_file({name: value.clone().contiguous() for name, value in tensors.items()}, target, metadata={"format": "pt"})


def copy_tokenizer(folder: Path, output: Path) -> PreTrainedTokenizerFast | None:
    """Copy the tokenizer, or make a fast one of its vocabulary; None for a model that reads no text."""
    if not (folder / "tokenizer.json").exists():
        from transformers import AutoTokenizer

        try:
            AutoTokenizer.from_pretrained(folder).save_pretrained(output)
        except (OSError, ValueError, KeyError, ImportError):
            return None  # there is none, or only a slow one
        return load_tokenizer(output)
    for name in TOKENIZER_FILES:
        if (folder / name).exists():
            shutil.copyfile(folder / name, output / name)
    return load_tokenizer(output)


def longest(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast | None) -> int:
    """Tokens a text may have: what the table of positions holds, and what the tokenizer says. Raises StageError."""
    limits = [int(tokenizer.model_max_length)] if tokenizer and tokenizer.model_max_length < NO_LIMIT else []
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if isinstance(positions, int):
        # RoBERTa and its kin number positions from the one behind the padding token's.
        offset = (config.pad_token_id or 0) + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
        limits.append(positions - offset)
    if not limits:
        raise StageError(
            "neither the model nor its tokenizer says how long a text may be", where="max_length", hint="Set it."
        )
    return min(limits)
