"""A whole `pack` stage: rows read from the store, tokenized, stored, and packed.

settings: texts (a Parquet file with `text`), tokenizer (folder).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tasks.data.tokens.ids import LENGTHS
from tasks.data.tokens.tokenizing import load_tokenizer
from tasks.stages import pack
from tests.bench.token_digests import token_digests
from tests.stages import jobs


class Arm:
    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        self.folder = folder
        dataset = folder / "dataset"
        (dataset / "train").mkdir(parents=True)
        shutil.copyfile(settings["texts"], dataset / "train/texts.parquet")
        self.inputs = {
            "data": jobs.stored(folder / "before", dataset, "dataset"),
            "tokenizer": jobs.stored(folder / "before", Path(settings["tokenizer"]), "tokenizer"),
        }
        self.end = load_tokenizer(Path(settings["tokenizer"]))[1]

    def reset(self) -> None:
        shutil.rmtree(self.folder / "store", ignore_errors=True)
        shutil.rmtree(self.folder / "job", ignore_errors=True)
        shutil.copytree(self.folder / "before", self.folder / "store", copy_function=os.link)
        params = pack.Params(data="data", tokenizer="tokenizer", context=1024)
        self.job = jobs.make_job(self.folder / "job", params, dict(self.inputs), store=self.folder / "store")

    def work(self) -> None:
        self.metrics = pack.run(self.job)

    def outcome(self) -> dict[str, Any]:
        ids = load_file(self.job.fetch_shared("train/texts.safetensors"))["ids"]
        (part,) = (self.folder / "store/artifacts/ids").iterdir()
        manifest = self.job.store.manifest("ids", part.name)
        lengths = load_file(self.job.store.fetch(manifest, only=[LENGTHS]) / LENGTHS)["lengths"]
        closing = np.cumsum(lengths) - 1
        if not (ids[closing] == self.end).all():
            raise AssertionError("a document does not end with the end-of-text token")
        return {**token_digests(np.delete(ids, closing), lengths - 1), "by_library": self.metrics["by_library"]}
