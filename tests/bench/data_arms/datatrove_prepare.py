"""The same preparation with datatrove's blocks, in as few passes as they allow, two processes, started by fork.

Its word splitter (spaCy) gives way to the regular expression Forgeline splits with, which is faster; the splits are
drawn by Forgeline's function. Tokens are written one after another: datatrove packs by cutting that stream.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import datatrove.pipeline.dedup.minhash as minhash
from datatrove.data import Document, DocumentsPipeline
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import ExactDedupFilter, ExactDedupSignature, ExactFindDedups
from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.hashing import HashConfig

from tasks.data.selection.dedup import NearDuplicates, number_of_bands
from tasks.data.selection.splitting import Split, split_of

SPLIT = Split(by="column:family", validation=0.05, test=0.05)
SHORTEST = 200
WORDS = re.compile(r"\w+|[^\w\s]")


class RegexWords:
    """Stands in for a word tokenizer of datatrove."""

    def word_tokenize(self, text: str) -> list[str]:
        return WORDS.findall(text)


minhash.load_word_tokenizer = lambda language: RegexWords()


def content(document: Document) -> str:
    return document.text


def clean(data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
    for document in data:
        document.text = unicodedata.normalize("NFC", document.text)
        if document.text.strip() and len(document.text) >= SHORTEST:
            yield document


class Splits:
    """Notes which split each document falls into."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        self.folder.mkdir(exist_ok=True)
        with (self.folder / f"{rank}.jsonl").open("w") as stream:
            for document in data:
                family = document.metadata["family"]
                stream.write(json.dumps([split_of(family, SPLIT), family]) + "\n")
                yield document


class Arm:
    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        self.settings, self.folder, self.made = settings, folder, folder / "made"
        self.workers = len(os.sched_getaffinity(0))
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its processes fill the cores

    def reset(self) -> None:
        shutil.rmtree(self.made, ignore_errors=True)
        self.passes = 0

    def work(self) -> None:
        made, workers = self.made, self.workers
        near = NearDuplicates(threshold=0.85)
        bands = number_of_bands(near.threshold, near.num_perm)
        config = minhash.MinhashConfig(
            n_grams=near.shingle,
            num_buckets=bands,
            hashes_per_bucket=near.num_perm // bands,
            hash_config=HashConfig(precision=64),
        )
        exact = ExactDedupConfig(content_getter=content)
        cleaned, left = str(made / "cleaned"), str(made / "left")
        self._run(
            [
                JsonlReader(self.settings["corpus"], glob_pattern="*.jsonl"),
                clean,
                JsonlWriter(cleaned, compression=None),
                ExactDedupSignature(str(made / "exact"), exact, finder_workers=workers),
            ]
        )
        self._run([ExactFindDedups(str(made / "exact"), str(made / "exact-found"), exact)])
        self._run(
            [
                JsonlReader(cleaned, glob_pattern="*.jsonl"),
                ExactDedupFilter(str(made / "exact-found"), exact),
                JsonlWriter(left, compression=None),
                minhash.MinhashDedupSignature(str(made / "near"), config),
            ]
        )
        near_found = [minhash.MinhashDedupBuckets(str(made / "near"), str(made / "near-found"), config=config)]
        self._run(near_found, tasks=bands)
        self._run([minhash.MinhashDedupCluster(str(made / "near-found"), str(made / "gone"), config=config)], tasks=1)
        self._run(
            [
                JsonlReader(left, glob_pattern="*.jsonl"),
                minhash.MinhashDedupFilter(str(made / "gone")),
                Splits(made / "splits"),
                DocumentTokenizer(
                    str(made / "tokens"),
                    tokenizer_name_or_path=str(Path(self.settings["tokenizer"], "tokenizer.json")),
                    eos_token="<|endoftext|>",
                    shuffle_documents=False,
                ),
            ]
        )

    def outcome(self) -> dict[str, Any]:
        survivors: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
        for file in (self.made / "splits").iterdir():
            for line in file.read_text().splitlines():
                split, family = json.loads(line)
                survivors[split].append(family)
        return {"survivors": {split: sorted(families) for split, families in survivors.items()}}

    def _run(self, pipeline: list[Any], tasks: int | None = None) -> None:
        self.passes += 1
        LocalPipelineExecutor(
            pipeline,
            tasks=tasks or self.workers,
            workers=min(tasks or self.workers, self.workers),
            logging_dir=str(self.made / f"log-{self.passes}"),
            start_method="fork",
        ).run()
