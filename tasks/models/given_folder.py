"""What can be wrong with a folder of weights that somebody else made, found before anything is loaded, with the remedy.

    weights(folder, allow_pickle=False)     # the files to read: model.safetensors, its shards, or pickles
    check_files(folder)                     # none is a stand-in, cut short or not listed

A folder is often more than a model: what a Trainer or accelerate leaves beside the weights (optimizer.bin,
training_args.bin, rng_state.pth) is none of ours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from infra.errors import StageError
from tasks.models.stored_weights import INDEX, ONE, weight_files

SAFE = (ONE, "model-*-of-*.safetensors", INDEX)
PICKLED = ("pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json")
"""Names that `save_pretrained` gives to weights."""
LFS = b"version https://git-lfs"
ELSEWHERE = (
    ("adapter_config.json", "They are an adapter: merge it into its model (`merge_and_unload` of peft) and save that."),
    ("zero_to_fp32.py", "DeepSpeed left its parts: `python zero_to_fp32.py . OUT --safe_serialization` joins them."),
    ("global_step*", "DeepSpeed left its parts: its `zero_to_fp32.py --safe_serialization` joins them."),
    ("pytorch_model_fsdp*", "FSDP left its parts: `accelerate merge-weights` joins them."),
    ("*.gguf", "A GGUF file is quantized for inference: take the weights it was made of."),
    ("tf_model.h5", "They are TensorFlow's: take, or make, a copy with model.safetensors."),
    ("flax_model.msgpack", "They are Flax's: take, or make, a copy with model.safetensors."),
    ("model_index.json", "It holds several models: name the folder of one of them."),
    ("checkpoint-*", "A Trainer left its checkpoints in folders of their own: name one of them."),
    ("*.safetensors", "They should be in model.safetensors, or in shards that model.safetensors.index.json lists."),
)


def weights(folder: Path, *, allow_pickle: bool) -> list[Path]:
    """The files that hold the weights. Raises StageError if there are none that may be read."""
    if stored := _named(folder, SAFE):
        return stored
    pickled = _named(folder, PICKLED)
    if not pickled:
        hint = next((hint for name, hint in ELSEWHERE if any(folder.glob(name))), None)
        raise StageError(
            f"there are no weights in {folder}", where=folder.name, hint=hint or "They should be in model.safetensors."
        )
    if not allow_pickle:
        raise StageError(
            f"the weights are a pickle ({pickled[0].name}), which can run code when it is opened",
            where=folder.name,
            hint="Convert them to safetensors, or set `allow_pickle: true` if you trust who made them.",
        )
    return pickled


def _named(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def check_files(folder: Path) -> None:
    """Raises StageError on files that are not what their names say, and on a config that no model can be made of."""
    for path in sorted(folder.iterdir()):
        with path.open("rb") as stream:
            if stream.read(len(LFS)) == LFS:
                raise StageError(
                    f"{path.name} is a pointer of git-lfs, not the file itself",
                    where=folder.name,
                    hint="Fetch the files: `git lfs pull` in the folder they come from.",
                )
    _check_config(folder)
    if _named(folder, SAFE):
        _check_safetensors(folder)


def _check_config(folder: Path) -> None:
    from transformers import CONFIG_MAPPING

    config = _config(folder)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise StageError(
            "config.json names no `model_type`",
            where=folder.name,
            hint="It is not one that `save_pretrained` of transformers wrote: save the model with it.",
        )
    if kind not in CONFIG_MAPPING:
        own = " Its code comes with the folder, and Forgeline runs none." if config.get("auto_map") else ""
        raise StageError(
            f"this version of transformers has no model type {kind!r}.{own}",
            where=folder.name,
            hint="Take a model of a type that transformers has itself; a newer one may need a newer transformers.",
        )
    if config.get("quantization_config"):
        raise StageError(
            "the weights are quantized already (`quantization_config` in config.json)",
            where=folder.name,
            hint="Take the weights they were made of: only those can be trained, and are quantized here at the end.",
        )


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise StageError(
            f"config.json is no JSON object: {error}",
            where=folder.name,
            hint="Fetch the file again; one that was edited by hand may lack a comma or a quote.",
        ) from error
    return found


def _check_safetensors(folder: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        files = weight_files(folder)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(
            f"{INDEX} is no index of weights: {error!r}", where=folder.name, hint="Fetch it again."
        ) from error
    for path in files:
        if not path.is_file():
            raise StageError(
                f"{path.name} is not there, and {INDEX} lists it" if (folder / INDEX).exists() else f"no {ONE}",
                where=folder.name,
                hint="The folder was not copied whole: fetch the missing file, or all of them.",
            )
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise StageError(
                f"{path.name} is damaged or cut short: {error}",
                where=folder.name,
                hint="Fetch the file again.",
            ) from error
