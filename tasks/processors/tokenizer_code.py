"""Code for a model's page that makes a batch of texts without Forgeline."""

from __future__ import annotations

import json
from pathlib import Path

TRANSFORMERS = """from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
batch = tokenizer(["A text."], padding=True, truncation=True, max_length={limit}, return_tensors="pt")
"""
ONNXRUNTIME = """import numpy
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
tokenizer.enable_truncation({limit})
tokenizer.enable_padding(pad_id={pad})
texts = [(e.ids, e.attention_mask, e.type_ids) for e in tokenizer.encode_batch(["A text."])]
arrays = [numpy.array(rows, numpy.int64) for rows in zip(*texts)]
batch = dict(zip(("input_ids", "attention_mask", "token_type_ids"), arrays))
"""


def loading_code(folder: Path | None, limit: int, format: str | None) -> str:
    """Lines that make `batch` of a text; empty where the tokenizer's files are not there. format: as on the card."""
    if format is None:
        return TRANSFORMERS.format(limit=limit)
    if folder is None or not (folder / "tokenizer.json").exists():
        return ""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return ONNXRUNTIME.format(limit=limit, pad=config.get("pad_token_id") or 0)
