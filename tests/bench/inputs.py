"""What the rows of the data benchmark work on, made once a run: texts, tokenizers."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path

from tests.bench.corpus import write_corpus, write_words

MEGABYTES = 48.0
SHARDS = 8
VOCABULARY = 8192


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="forgeline-bench-")


@cache
def corpus() -> Path:
    """Folder of JSONL files."""
    folder = Path(_folder().name, "corpus")
    write_corpus(folder, MEGABYTES, SHARDS)
    return folder


@cache
def words(megabytes: float, files: int) -> Path:
    """Folder with made-up texts in so many JSONL files, `megabytes` in all; no two calls make the same texts."""
    folder = Path(_folder().name, f"words-{megabytes:g}-{files}")
    folder.mkdir()
    for number in range(files):
        name = f"{folder.name}-{number:02}"
        write_words(folder / f"{name}.jsonl", megabytes / files, name)
    return folder


@cache
def texts(megabytes: float) -> tuple[Path, float]:
    """(a Parquet file of the first `megabytes` of `corpus()`, column `text`; its UTF-8 bytes in MB)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found, size = [], 0.0
    for text in _texts(corpus()):
        found.append(text)
        size += len(text.encode()) / 1e6
        if size >= megabytes:
            break
    file = Path(_folder().name, f"texts-{megabytes:g}.parquet")
    pq.write_table(pa.table({"text": found}), file, compression="zstd")
    return file, size


@cache
def tokenizer(algorithm: str) -> Path:
    """Folder of a tokenizer trained on a tenth of the corpus."""
    from tasks.data.tokens.tokenizing import save_tokenizer, train_tokenizer

    folder = Path(_folder().name, algorithm)
    folder.mkdir()
    some = _texts(corpus())[::10]
    save_tokenizer(train_tokenizer(algorithm, iter([some]), VOCABULARY), folder)
    return folder


def _texts(folder: Path) -> list[str]:
    lines = (line for file in sorted(folder.glob("*.jsonl")) for line in file.read_text("utf-8").splitlines())
    return [json.loads(line)["text"] for line in lines]
