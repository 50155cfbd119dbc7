"""From a `dataset` artifact's rows to padded token batches: what every objective over text shares."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from infra.errors import StageError
from tasks.data.columns import row_schema, split_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tasks.stage import InputArtifact

# No text of max_length tokens is longer than this many characters a token; what lies beyond is cut before tokenizing.
CHARACTERS_PER_TOKEN = 64


def read_split(data: InputArtifact, split: str, *, columns: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of one split in frozen order. Raises StageError if the split or a column is missing, or it is empty."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        files = split_files(data.path, split)
    except StageError as error:
        raise StageError(error.what, where=data.stage, hint=error.hint) from error
    schema = pq.read_schema(files[0]) if files else row_schema()
    missing = [name for name in columns if name not in schema.names]
    if missing:
        raise StageError(
            f"split {split!r} has no column {missing[0]!r}",
            where=data.stage,
            hint=f"It has: {', '.join(schema.names)}. Labels come from the dataset stage's `label`, "
            "other columns from the `columns` of its sources.",
        )
    wanted = pa.schema([schema.field(name) for name in columns])
    table = pa.concat_tables([wanted.empty_table(), *(pq.read_table(f, columns=list(columns)) for f in files)])
    if table.num_rows == 0:
        raise StageError(
            f"split {split!r} is empty", where=data.stage, hint="Add data, or give the split a larger share."
        )
    return {name: table.column(name).to_pylist() for name in columns}


def dataset_labels(data: InputArtifact) -> list[str]:
    """The label set of a `dataset`, in the order that numbers the classes; StageError if there are under two."""
    labels = json.loads((data.path / "dataset.json").read_text(encoding="utf-8")).get("labels")
    if not labels:
        raise StageError("the dataset has no labels", where=data.stage, hint="Give its dataset stage a `label`.")
    if len(labels) < 2:
        raise StageError(
            f"the label set has one class, {labels[0]!r}",
            where=data.stage,
            hint="There is nothing to tell apart: keep at least two labels.",
        )
    return [str(label) for label in labels]


def tokenized(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast | None, max_length: int
) -> list[npt.NDArray[np.int32]]:
    """Each text's first `max_length` token ids (special tokens as the tokenizer adds them), at least one."""
    if tokenizer is None:
        raise StageError("these data are text, and the model has no tokenizer", hint="Train from a model that has one.")
    cut = [text[: max_length * CHARACTERS_PER_TOKEN] for text in texts]
    found = tokenizer(cut, truncation=True, max_length=max_length, padding=False, return_attention_mask=False)
    empty = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0
    return [np.asarray(ids or [empty], dtype=np.int32) for ids in found["input_ids"]]


def pad_token_ids(
    rows: Sequence[npt.NDArray[Any]], pad_token_id: int, *, multiple: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded int64 `input_ids` [B, T] and `attention_mask` [B, T]; T is the longest, rounded up to `multiple`."""
    longest = max(len(row) for row in rows)
    width = -(-longest // multiple) * multiple
    input_ids = np.full((len(rows), width), pad_token_id, dtype=np.int64)
    attention_mask = np.zeros((len(rows), width), dtype=np.int64)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = row
        attention_mask[i, : len(row)] = 1
    return torch.from_numpy(input_ids), torch.from_numpy(attention_mask)
