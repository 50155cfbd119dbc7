"""The token ids of one file of a dataset: a part, kept by the file's content and the tokenizer's."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from infra.store import Store
from tasks.data.columns import iterate_columns
from tasks.data.packing import DTYPES, token_dtype
from tasks.data.parts import artifact_file, artifact_folder
from tasks.data.tokenizing import Encoder, load_tokenizer

IDS = "ids.safetensors"
BATCH = 512
VERSION = 1
"""Raised when the same text would be tokenized differently."""


def tokenize_file(arguments: dict[str, Any], folder: Path, store: Store) -> dict[str, float]:
    """Write `ids.safetensors`: ids [tokens] of all documents, each with the end-of-text token behind it; lengths.

    arguments: `file` and `tokenizer`, locations in the store of the file and of the tokenizer's artifact.
    """
    from safetensors.numpy import save_file

    encoder, end = _encoder(artifact_folder(arguments["tokenizer"], store))
    dtype, before = DTYPES[token_dtype(encoder.tokenizer.get_vocab_size())], encoder.by_library
    ids, lengths = [np.zeros(0, dtype)], list[int]()
    for batch in iterate_columns([artifact_file(arguments["file"], store)], ["text"], BATCH):
        for document in encoder.encode(batch["text"]):
            whole = np.empty(len(document) + 1, dtype)
            whole[:-1], whole[-1] = document, end
            ids.append(whole)
            lengths.append(len(whole))
    save_file({"ids": np.concatenate(ids), "lengths": np.array(lengths, np.int64)}, folder / IDS)
    return {
        "documents": float(len(lengths)),
        "tokens": float(sum(lengths)),
        "by_library": float(encoder.by_library - before),
    }


@lru_cache(maxsize=1)
def _encoder(folder: Path) -> tuple[Encoder, int]:
    """An encoder, which remembers the words of the files before, and the id of the end-of-text token."""
    tokenizer, end = load_tokenizer(folder)
    return Encoder(tokenizer), end
