"""The token ids of one file of a dataset: a part, kept by the file's content and the tokenizer's."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.store import Store
from tasks.data.dataset.layout import iterate_columns
from tasks.data.parts.parts import artifact_file, artifact_folder
from tasks.data.tokens.encoding import Differs, Encoded, Encoder
from tasks.data.tokens.packing import DTYPES, token_dtype
from tasks.data.tokens.tokenizing import load_tokenizer

IDS, LENGTHS = "ids.safetensors", "lengths.safetensors"
BATCH = 1024
HEADER = 120
"""Bytes of the header, padded with blanks, so that it can be written last: 128 with its length."""
VERSION = 2
"""Raised when the same text would be tokenized differently."""
log = logging.getLogger(__name__)


def tokenize_file(arguments: dict[str, Any], folder: Path, store: Store) -> dict[str, float]:
    """Write ids [tokens] of all documents, each with the end-of-text token behind it, and the documents' lengths.

    arguments: `file` and `tokenizer`, locations in the store of the file and of the tokenizer's artifact. Returns how
    many documents the tokenizers library encoded (`by_library`), and how many it only compared (`compared`).
    """
    from safetensors.numpy import save_file

    encoder, end = _encoder(artifact_folder(arguments["tokenizer"], store))
    file, before = artifact_file(arguments["file"], store), encoder.compared
    dtype = token_dtype(encoder.tokenizer.get_vocab_size())
    fast = encoder.fast is not None
    try:
        encode = encoder.by_fast if fast else encoder.by_library
        lengths = _save(map(encode, _texts(file)), end, dtype, folder / IDS)
    except Differs as error:
        log.warning("%s: the fast tokenizer differs, so it is not used: %s", arguments["file"], error)
        fast = False
        lengths = _save(map(encoder.by_library, _texts(file)), end, dtype, folder / IDS)
    save_file({"lengths": lengths}, folder / LENGTHS)
    return {
        "documents": float(len(lengths)),
        "tokens": float(lengths.sum()),
        "by_library": 0.0 if fast else float(len(lengths)),
        "compared": float(encoder.compared - before),
    }


def _save(batches: Iterable[Encoded], end: int, dtype: str, path: Path) -> npt.NDArray[np.int64]:
    """Write the ids as they come and the header last; returns the lengths."""
    lengths = [np.zeros(0, np.int64)]
    with path.open("wb") as stream:
        stream.seek(8 + HEADER)
        for batch in batches:
            closed = batch.closed_by(end)
            stream.write(closed.ids.astype(DTYPES[dtype]).data)
            lengths.append(closed.lengths)
        size = stream.tell() - 8 - HEADER
        entry = {"dtype": dtype, "shape": [size // DTYPES[dtype].itemsize], "data_offsets": [0, size]}
        stream.seek(0)
        stream.write(HEADER.to_bytes(8, "little") + json.dumps({"ids": entry}).encode().ljust(HEADER))
    return np.concatenate(lengths)


def _texts(file: Path) -> Iterator[list[str]]:
    return (batch["text"] for batch in iterate_columns([file], ["text"], BATCH))


@lru_cache(maxsize=1)
def _encoder(folder: Path) -> tuple[Encoder, int]:
    """The encoder of a tokenizer, and the id of its end-of-text token."""
    tokenizer, end = load_tokenizer(folder)
    return Encoder(tokenizer), end
