"""`datasets.map(batched=True)` with the same tokenizer, as its documentation shows it; nothing comes from its cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from tests.bench.token_digests import token_digests


class Arm:
    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        self.rows = Dataset.from_parquet(settings["texts"], cache_dir=str(folder))
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(settings["tokenizer"])

    def reset(self) -> None:
        pass

    def work(self) -> None:
        self.made = self.rows.map(self._encode, batched=True, remove_columns=["text"], load_from_cache_file=False)

    def outcome(self) -> dict[str, str]:
        column = self.made.with_format("arrow")[:]["input_ids"].combine_chunks()
        return token_digests(column.flatten().to_numpy(), np.diff(column.offsets.to_numpy()))

    def _encode(self, batch: dict[str, list[str]]) -> dict[str, Any]:
        options = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
        return dict(self.tokenizer(batch["text"], **options))
