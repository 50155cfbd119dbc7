"""`datasets.map(batched=True)` with the same tokenizer, as its documentation shows it; nothing comes from its cache."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerFast


class Arm:
    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        self.rows = Dataset.from_parquet(settings["texts"], cache_dir=str(folder))
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(settings["tokenizer"])

    def reset(self) -> None:
        pass

    def work(self) -> None:
        self.made = self.rows.map(self._encode, batched=True, remove_columns=["text"], load_from_cache_file=False)

    def outcome(self) -> dict[str, Any]:
        column = self.made.with_format("arrow")[:]["input_ids"].combine_chunks()
        lengths = np.diff(column.offsets.to_numpy()).astype(np.int64)
        return {
            "lengths": hashlib.sha256(lengths.tobytes()).hexdigest(),
            "ids": hashlib.sha256(column.flatten().to_numpy().astype(np.uint32).tobytes()).hexdigest(),
        }

    def _encode(self, batch: dict[str, list[str]]) -> dict[str, Any]:
        options = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
        return dict(self.tokenizer(batch["text"], **options))
