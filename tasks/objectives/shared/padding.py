"""Rows of token ids as one padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

# No text of max_length tokens is longer than this many characters a token; what lies beyond is cut before tokenizing.
CHARACTERS_PER_TOKEN = 64


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
