"""Documents joined by an end-of-text token and cut into rows of one length, in constant memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

DTYPES: dict[str, np.dtype[Any]] = {"U16": np.dtype("<u2"), "I32": np.dtype("<i4")}


def token_dtype(vocab_size: int) -> str:
    """safetensors name of the smallest integer type that holds every id: `U16` below 65,536 tokens, else `I32`."""
    return "U16" if vocab_size < 1 << 16 else "I32"


def pack_rows(documents: Iterable[npt.NDArray[np.int32]], context: int, end: int) -> Iterator[npt.NDArray[np.int32]]:
    """Blocks of rows [n, context]: the stream doc, end, doc, end ...; what does not fill the last row is dropped."""
    waiting: list[npt.NDArray[np.int32]] = []
    count = 0
    separator = np.array([end], np.int32)
    for document in documents:
        waiting += [document, separator]
        count += len(document) + 1
        if count >= max(context, 1 << 16):
            stream = np.concatenate(waiting)
            whole = count // context * context
            yield stream[:whole].reshape(-1, context)
            waiting, count = [stream[whole:]], count - whole
    if count >= context:
        stream = np.concatenate(waiting)
        yield stream[: count // context * context].reshape(-1, context)


def write_rows(blocks: Iterable[npt.NDArray[np.int32]], context: int, dtype: str, file: Path, scratch: Path) -> int:
    """Write blocks [n, context] as one safetensors tensor `input_ids` and return its number of rows.

    A safetensors header names the shape before the data, so the rows go to a scratch file first.
    """
    rows = 0
    with scratch.open("wb") as stream:
        for block in blocks:
            stream.write(block.astype(DTYPES[dtype]).tobytes())
            rows += len(block)
    size = rows * context * DTYPES[dtype].itemsize
    entry = {"dtype": dtype, "shape": [rows, context], "data_offsets": [0, size]}
    header = json.dumps({"input_ids": entry}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with file.open("wb") as target, scratch.open("rb") as source:
        target.write(len(header).to_bytes(8, "little") + header)
        shutil.copyfileobj(source, target, 1 << 20)
    scratch.unlink()
    return rows
