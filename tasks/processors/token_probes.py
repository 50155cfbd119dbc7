"""Made-up batches of token ids, like real ones, to compare a graph with its model on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Batch = dict[str, npt.NDArray[np.int64]]


def random_batches(
    config: Any, names: Sequence[str], max_length: int, seed: int, shapes: list[tuple[int, int]] | None = None
) -> Iterator[Batch]:
    """Batches like real ones: random ids, rows of ragged length, padded right, then left. The first row is full.

    Those of `names` they hold: token types are 1 in the second half of a row; a decoder reads a length of its own.
    shapes: [B, T] of each; by default a single token, one long row, and ragged batches up to the longest.
    """
    rng = np.random.default_rng(seed)
    long = max(1, min(max_length, 512))
    pad = config.pad_token_id if isinstance(config.pad_token_id, int) else 0
    for size, length in shapes or [(1, 1), (1, long), (2, min(3, long)), (5, min(33, long)), (8, long)]:
        ids = rng.integers(0, config.vocab_size, (size, length), dtype=np.int64)
        # A pad token inside a text would end it for models that look for the last token that is no padding.
        ids[ids == pad] = (pad + 1) % config.vocab_size
        lengths = np.r_[length, rng.integers(1, length + 1, size - 1)][:, None]
        places = np.arange(length)[None, :]
        for mask in (places < lengths, places >= length - lengths):
            found = {
                "input_ids": np.where(mask, ids, pad),
                "attention_mask": mask.astype(np.int64),
                "token_type_ids": np.broadcast_to(places >= length // 2, mask.shape).astype(np.int64),
                "decoder_input_ids": np.ascontiguousarray(ids[:, : max(1, length * 2 // 3)]),
            }
            yield {name: found[name] for name in names}
            if size == 1:
                break
