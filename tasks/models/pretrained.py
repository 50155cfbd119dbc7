"""The weights of a model that was made elsewhere, brought into the form of ours: safetensors beside a config."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import StageError
from tasks.models.given_folder import weights
from tasks.models.stored_weights import ONE

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which training loops keep a model's weights in a checkpoint."""
PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""
UNPICKLED = "Load it where it was made, and save the model with `save_pretrained`, which writes model.safetensors."

NO_LIMIT = 1_000_000
"""transformers writes a number beyond this where a tokenizer has no longest text."""


def bring_weights(folder: Path, output: Path, *, allow_pickle: bool, move: bool) -> None:
    """Config and weights; pickled ones are rewritten. move: the folder needs its safetensors no more.

    Raises StageError if there are none that may be read.
    """
    shutil.copyfile(folder / "config.json", output / "config.json")
    found = weights(folder, allow_pickle=allow_pickle)
    if pickled := [path for path in found if path.suffix == ".bin"]:
        _rewrite(pickled, output / ONE)
        return
    for path in found:
        (shutil.move if move else shutil.copyfile)(path, output / path.name)


def _rewrite(pickled: list[Path], target: Path) -> None:
    """Tensors of pickles as safetensors, tied ones once; anything in them but tensors is refused."""
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for path in pickled:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, TypeError, ValueError) as error:
            raise StageError(
                f"{path.name} holds no plain tensors: {_why(error)}", where=path.parent.name, hint=UNPICKLED
            ) from error
        tensors |= _state(loaded, path)
    save_file({name: value.clone().contiguous() for name, value in tensors.items()}, target, metadata={"format": "pt"})


def _why(error: Exception) -> str:
    """What torch found, without its advice to run the file's code after all."""
    named = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error))
    if "Unsupported" in str(error) and named:
        return f"it would run {named[1]}"
    return "the file is damaged, or was not written by torch.save"


def _state(loaded: Any, path: Path) -> dict[str, torch.Tensor]:
    """The tensors by name, out of the wrappers that trainers put around them and their names."""
    while isinstance(loaded, Mapping) and (inner := next((n for n in WRAPPERS if _has_tensors(loaded.get(n))), None)):
        loaded = loaded[inner]
    if not isinstance(loaded, Mapping):
        raise StageError(
            f"{path.name} holds a {type(loaded).__name__}, and no weights by name",
            where=path.parent.name,
            hint=UNPICKLED,
        )
    if other := sorted(str(name) for name, value in loaded.items() if not _is_tensor(value)):
        raise StageError(
            f"{path.name} holds no plain tensors: {', '.join(other[:5])}", where=path.parent.name, hint=UNPICKLED
        )
    found = {str(name): value for name, value in loaded.items()}
    for prefix in PREFIXES:
        if found and all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(_is_tensor(one) or _has_tensors(one) for one in value.values())


def pad_in_config(folder: Path, tokenizer: PreTrainedTokenizerFast | None) -> None:
    """Write into config.json which token pads, where it does not say: whoever loads the model then knows."""
    from transformers import AutoConfig

    from tasks.processors.padding import padding_id

    config = AutoConfig.from_pretrained(folder)
    pad = padding_id(config, tokenizer)
    if pad is None or pad == config.pad_token_id:
        return
    path = folder / "config.json"
    given = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**given, "pad_token_id": pad}, indent=2) + "\n", encoding="utf-8")


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
