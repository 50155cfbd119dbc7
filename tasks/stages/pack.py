"""pack: documents -> token ids and rows of at most `context` tokens, ready for a language model.

Training rows are packed by best fit and name where each document in them begins; held-out documents get rows of their
own (`tasks/data/tokens/packing.py`). Every file of the dataset is tokenized once and kept, so new data costs its own
tokens; the metrics say how many documents the fast tokenizer's ids were compared for, and how many the tokenizers
library encoded (`tasks/data/tokens/encoding.py`).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from infra.artifacts import FileEntry
from infra.errors import StageError
from tasks.data.dataset.layout import stored_files
from tasks.data.parts.parts import artifact_location
from tasks.data.tokens.ids import IDS, LENGTHS, VERSION
from tasks.stage import Input, Job, PartKind, PartSpec, Stage, StageParams

TOKENS = PartKind("ids", "tasks.data.tokens.ids:tokenize_file", worth_a_process=64 << 20)


class Params(StageParams):
    """Data and tokenizer to pack, and the length of a row."""

    data: Annotated[str, Input("dataset")] = Field(description="Dataset to tokenize; all its splits, or the one named.")
    tokenizer: Annotated[str, Input("tokenizer")] = Field(description="Tokenizer to encode with.")
    context: int = Field(ge=2, description="Tokens in a row.")


def parts(job: Job[Params]) -> tuple[PartKind, list[PartSpec]]:
    """The token ids of each file."""
    data, tokenizer = job.input("data").manifest, job.input("tokenizer").manifest
    place = artifact_location(tokenizer, "")
    return TOKENS, [
        PartSpec(
            {"version": VERSION, "file": entry.sha256, "tokenizer": tokenizer.digest},
            {"file": artifact_location(data, entry.path), "tokenizer": place},
            entry.size,
        )
        for _, entry in _files(job)
    ]


def run(job: Job[Params]) -> dict[str, float]:
    import numpy as np
    from safetensors.numpy import load_file

    from tasks.data.parts.parts import fetch_parts, make_parts
    from tasks.data.tokens.packing import best_fit, one_to_a_row, save_plan
    from tasks.data.tokens.tokenizing import load_tokenizer

    context, wanted = job.params.context, _files(job)
    folder = job.store.fetch(job.input("tokenizer").manifest)
    shutil.copytree(folder, job.output / "tokenizer")
    made = make_parts(*parts(job), job.store, workers=job.cores, scratch=job.scratch, progress=job.bytes_done)
    places = fetch_parts(made.parts, [LENGTHS], job.store)
    rows, used = {}, {}
    for split in sorted({split for split, _ in wanted}):
        lengths = []
        for (of, entry), part, place in zip(wanted, made.parts, places, strict=True):
            if of != split:
                continue
            lengths.append(load_file(place / LENGTHS)["lengths"])
            name = entry.path.rpartition(".")[0]
            ids = next(entry for entry in part.payload if entry.path == IDS)
            job.shared.append(replace(ids, path=f"{name}.safetensors"))
        plan = (best_fit if split == "train" else one_to_a_row)(np.concatenate(lengths), context)
        save_plan(plan, lengths, job.output / f"{split}.rows.safetensors")
        rows[split] = plan.rows
        used[split] = float(plan.length.sum()) / max(plan.rows * context, 1)
        if split == "train":
            long = int((np.concatenate(lengths) > context).sum())
    if not sum(rows.values()):
        raise StageError("there is nothing to pack", where="data", hint="The dataset has no rows in these splits.")
    tokenizer, _ = load_tokenizer(folder)
    description = {"context": context, "vocab_size": tokenizer.get_vocab_size(), "splits": rows}
    (job.output / "tokens.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    tokens, by_library, compared = (
        sum(part.metrics[name] for part in made.parts) for name in ("tokens", "by_library", "compared")
    )
    return {
        "rows": float(sum(rows.values())),
        "tokens": tokens,
        "by_library": by_library,
        "compared": compared,
        **{f"{name}_rows": float(count) for name, count in rows.items()},
        **({"useful_share": used["train"], "documents_cut": float(long)} if "train" in used else {}),
        "files": float(len(wanted)),
        "files_reused": float(made.reused),
    }


def _files(job: Job[Params]) -> list[tuple[str, FileEntry]]:
    """The files to pack, each with its split."""
    data = job.input("data")
    return stored_files(data.manifest, [data.split] if data.split else None)


STAGE = Stage(kind="pack", version=2, makes="tokens", params=Params, run=run, lazy=True, parts=parts)
