"""From a `dataset` artifact's rows to padded token batches: what every objective over text shares."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from infra.errors import StageError
from tasks.data.dataset.layout import split_files
from tasks.processors.tokenizer import require_tokenizer

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
    empty = StageError(
        f"split {split!r} is empty", where=data.stage, hint="Add data, or give the split a larger share."
    )
    if not files:
        raise empty  # it has no columns that could be missing
    schema = pq.read_schema(files[0])
    missing = [name for name in columns if name not in schema.names]
    if missing:
        raise StageError(
            f"split {split!r} has no column {missing[0]!r}",
            where=data.stage,
            hint=f"It has: {', '.join(schema.names)}. {_where_from(missing[0])}",
        )
    wanted = pa.schema([schema.field(name) for name in columns])
    table = pa.concat_tables([wanted.empty_table(), *(pq.read_table(f, columns=list(columns)) for f in files)])
    if table.num_rows == 0:
        raise empty
    return {name: table.column(name).to_pylist() for name in columns}


def read_texts(data: InputArtifact, split: str, column: str) -> list[str]:
    """A column of texts. Raises StageError where one is missing or empty, naming its example."""
    table = read_split(data, split, columns=tuple(dict.fromkeys(("id", column))))
    for name, text in zip(table["id"], table[column], strict=True):
        if not isinstance(text, str) or not text.strip():
            raise StageError(
                f"example {name!r} of split {split!r} has no text in column {column!r}",
                where=data.stage,
                hint="Give every row one, or leave the row out of the source.",
            )
    return table[column]


def _where_from(column: str) -> str:
    if column == "label":
        return "Labels come from the dataset stage's `label`."
    return "A source's `columns` names what passes through to the dataset."


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
    return _rows(tokenizer, _encoded(texts, tokenizer, max_length)[1])


def _encoded(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast | None, max_length: int, **asked: bool
) -> tuple[list[str], Any]:
    """(the texts as far as they were read, what the tokenizer makes of them)."""
    tokenizer = require_tokenizer(tokenizer)
    cut = [text[: max_length * CHARACTERS_PER_TOKEN] for text in texts]
    given: dict[str, Any] = {"truncation": True, "max_length": max_length, "return_attention_mask": False, **asked}
    return cut, tokenizer(cut, padding=False, **given)


def _rows(tokenizer: Any, found: Any) -> list[npt.NDArray[np.int32]]:
    empty = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0
    return [np.asarray(ids or [empty], dtype=np.int32) for ids in found["input_ids"]]


def bytes_of_tokens(text: str, offsets: Sequence[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """UTF-8 bytes of the text that each token stands for: from the end of those before it to its own end.

    offsets: (begin, end) of each token in characters, as tokenizers give them.
    """
    sizes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    before = np.r_[0, np.cumsum(1 + (sizes > 0x7F) + (sizes > 0x7FF) + (sizes > 0xFFFF))]
    ends = (
        np.maximum.accumulate(np.asarray([end for _, end in offsets], np.int64)) if offsets else np.zeros(0, np.int64)
    )
    found: npt.NDArray[np.int64] = np.diff(before[np.r_[0, ends]])
    return found


def end_of_text(tokenizer: PreTrainedTokenizerFast | None) -> int:
    """The id of the end-of-text token. Raises StageError if there is none."""
    end = require_tokenizer(tokenizer).eos_token_id
    if end is None:
        raise StageError(
            "the tokenizer has no end-of-text token, so that no model could learn to end a text",
            hint="Set `eos_token` in its tokenizer_config.json, or `end_of_text: false` in the objective.",
        )
    return int(end)


def measured_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast | None, max_length: int, *, close: bool = False
) -> list[dict[str, Any]]:
    """`input_ids` as `tokenized` gives them, and `bytes`: how many all tokens but the first stand for.

    close: end each text that was not cut with the end-of-text token, which stands for no bytes. Raises StageError where
    the tokenizer has none.
    """
    cut, found = _encoded(texts, tokenizer, max_length, return_offsets_mapping=True)
    sizes = [int(bytes_of_tokens(*pair)[1:].sum()) for pair in zip(cut, found["offset_mapping"], strict=True)]
    rows = _rows(tokenizer, found)
    if close:
        end = end_of_text(tokenizer)
        rows = [row if row[-1] == end or len(row) >= max_length else np.append(row, np.int32(end)) for row in rows]
    return [{"input_ids": row, "bytes": size} for row, size in zip(rows, sizes, strict=True)]


def tokenized_pairs(
    texts: Sequence[str], seconds: Sequence[str], tokenizer: PreTrainedTokenizerFast | None, max_length: int
) -> list[dict[str, npt.NDArray[np.int32]]]:
    """`input_ids` and `token_type_ids` of each pair as the tokenizer joins it, the longer text cut first.

    Token types are those of the tokenizer's own template (RoBERTa's: zeros); a model that knows none never sees them.
    """
    tokenizer = require_tokenizer(tokenizer)
    limit = max_length * CHARACTERS_PER_TOKEN
    found = tokenizer(
        [text[:limit] for text in texts],
        [text[:limit] for text in seconds],
        truncation=True,
        max_length=max_length,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=True,
    )
    empty = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0
    rows = []
    for ids, types in zip(found["input_ids"], found["token_type_ids"], strict=True):
        row = np.asarray(ids or [empty], dtype=np.int32)
        rows.append({"input_ids": row, "token_type_ids": np.array(types or [0], np.int32)})
    return rows


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
