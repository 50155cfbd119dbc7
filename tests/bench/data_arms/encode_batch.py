"""`Tokenizer.encode_batch` of the tokenizers library, on texts that are in memory already; its ids are not even read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from tests.bench.token_digests import token_digests

BATCH = 1000


class Arm:
    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        texts = pq.read_table(settings["texts"])["text"].to_pylist()
        self.batches = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]
        self.tokenizer = Tokenizer.from_file(str(Path(settings["tokenizer"], "tokenizer.json")))

    def reset(self) -> None:
        self.made: list[Any] = []

    def work(self) -> None:
        for texts in self.batches:
            self.made += self.tokenizer.encode_batch(texts, add_special_tokens=False)

    def outcome(self) -> dict[str, str]:
        lengths = np.array([len(encoding.ids) for encoding in self.made], np.int64)
        ids = np.concatenate([np.array(encoding.ids, np.uint32) for encoding in self.made])
        self.made = []
        return token_digests(ids, lengths)
