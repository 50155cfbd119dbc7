"""Forgeline's preparation from files to packed rows: plan, claims, jobs and commits included, Prefect's server not.

settings: corpus (folder), tokenizer (folder), turn: "full" begins with an empty store, "grown" with that of the corpus
and the files of `growth` beside it, "again" with that of the corpus and nothing new.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from infra.artifacts import Manifest
from infra.launch.local import LocalLauncher
from infra.open_store import open_store
from infra.source_files import SETTLED_NS
from tasks.data.tokens.packing import best_fit, mapped_ids, one_to_a_row, save_plan
from tasks.pipeline.load import load_pipeline
from tasks.plan.plan import make_plan
from tasks.run.execute import execute_stage
from tests.e2e.quiet_run import quiet_context

CONTEXT = 1024
END = 0
"""The end-of-text token of a tokenizer that Forgeline trained."""


class Arm:
    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.data, self.store, self.digests = folder / "data", folder / "store", folder / "cache/digests.sqlite"
        shutil.copytree(settings["corpus"], self.data)
        stages = {
            "data": {
                "dataset": {
                    "sources": [{"files": f"{self.data}/*.jsonl", "format": "jsonl"}],
                    "clean": {"unicode": "nfc", "min_chars": 200},
                    "dedup": {"exact": True, "near": {"threshold": 0.85}},
                    "split": {"by": "column:family", "validation": 0.05, "test": 0.05, "frozen": False},
                }
            },
            "tokenizer": {"tokenizer": {"given": settings["tokenizer"]}},
            "tokens": {"pack": {"data": "data", "tokenizer": "tokenizer", "context": CONTEXT}},
        }
        self.file = folder / "pipeline.yaml"
        document = {"name": "bench", "store": str(self.store), "tracking": {"mode": "disabled"}, "stages": stages}
        self.file.write_text(yaml.safe_dump(document))
        self.launcher = LocalLauncher(folder)
        self.launcher.prestart()
        self.made: dict[str, Manifest] = {}
        time.sleep(2 * SETTLED_NS / 1e9)  # digests of files that have just been written are not remembered
        if settings["turn"] != "full":
            self.work()
            self._copy(self.store, folder / "before")
            shutil.copyfile(self.digests, folder / "before.sqlite")

    def reset(self) -> None:
        """Back to what stood before the first turn; what an unlink can undo is linked, not copied."""
        shutil.rmtree(self.store, ignore_errors=True)
        self.digests.unlink(missing_ok=True)
        if self.settings["turn"] == "full":
            return
        self._copy(self.folder / "before", self.store)
        shutil.copyfile(self.folder / "before.sqlite", self.digests)
        if self.settings["turn"] == "grown":
            for file in Path(self.settings["growth"]).iterdir():
                (self.data / file.name).unlink(missing_ok=True)
                shutil.copyfile(file, self.data / file.name)

    def work(self) -> None:
        pipeline = load_pipeline(self.file)
        store = open_store(pipeline.store, probe=True)
        run = self.folder / "runs" / str(time.time_ns())
        context = quiet_context(pipeline, store, self.launcher, run, slots=len(os.sched_getaffinity(0)))
        plan = make_plan(pipeline, store)
        made = {line.node.name: line.artifact for line in plan if line.artifact is not None}
        for line in plan:
            if line.action != "reuse":
                manifest = execute_stage(line.node, made, context).manifest
                made[line.node.name], self.made[line.node.name] = manifest.ref, manifest

    def outcome(self) -> dict[str, Any]:
        """survivors: families of each split; and how long the packing alone takes on these lengths."""
        store = open_store(str(self.store))
        data, tokens = (store.fetch(self.made[name]) for name in ("data", "tokens"))
        survivors = {
            split: sorted(
                name for file in (data / split).glob("*.parquet") for name in pq.read_table(file)["group"].to_pylist()
            )
            for split in ("train", "validation", "test")
        }
        return {
            "survivors": survivors,
            "packing_seconds": self._packing_seconds(tokens),
            "tokens": self.made["tokens"].metrics["tokens"],
            "useful_share": self.made["tokens"].metrics["useful_share"],
            "shards_reused": self.made["data"].metrics["shards_reused"],
        }

    def _packing_seconds(self, tokens: Path) -> float:
        total = 0.0
        for split in ("train", "validation", "test"):
            lengths = []
            for file in sorted((tokens / split).glob("*.safetensors")):
                lengths.append(np.diff(np.flatnonzero(mapped_ids(file) == END), prepend=-1).astype(np.int64))
            began = time.perf_counter()
            plan = (best_fit if split == "train" else one_to_a_row)(np.concatenate(lengths), CONTEXT)
            save_plan(plan, lengths, self.folder / "plan.safetensors")
            total += time.perf_counter() - began
        return total

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        shutil.copytree(source, target, copy_function=os.link)
