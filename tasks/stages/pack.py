"""pack: documents -> rows of `context` tokens, ready for a language model; no padding, at most one row's worth lost."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from infra.errors import StageError
from tasks.stage import Input, InputArtifact, Job, Stage, StageParams

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from tasks.data.tokenizing import Encoder


class Params(StageParams):
    """What is packed."""

    data: Annotated[str, Input("dataset")] = Field(description="Dataset to tokenize; all its splits, or the one named.")
    tokenizer: Annotated[str, Input("tokenizer")] = Field(description="Tokenizer to encode with.")
    context: int = Field(ge=2, description="Tokens in a row.")


def run(job: Job[Params]) -> dict[str, float]:
    from tasks.data.columns import describe
    from tasks.data.packing import pack_rows, token_dtype, write_rows
    from tasks.data.tokenizing import Encoder, load_tokenizer

    if job.execution.threads != "auto":
        os.environ["RAYON_NUM_THREADS"] = str(job.execution.threads)
    data, context = job.input("data"), job.params.context
    tokenizer, end = load_tokenizer(job.input("tokenizer").path)
    encoder = Encoder(tokenizer)
    vocab_size = tokenizer.get_vocab_size()
    dtype = token_dtype(vocab_size)
    names = [data.split] if data.split else list(describe(data.path)["splits"])
    rows = {}
    for name in names:
        blocks = pack_rows(_encoded(encoder, data, name), context, end)
        rows[name] = write_rows(blocks, context, dtype, job.output / f"{name}.safetensors", job.scratch / "rows.bin")
    if not rows.get("train", next(iter(rows.values()))):
        raise StageError(f"there is less text than one row of {context} tokens", where="context", hint="Lower it.")
    description = {"context": context, "vocab_size": vocab_size, "splits": rows}
    (job.output / "tokens.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    shutil.copytree(job.input("tokenizer").path, job.output / "tokenizer")
    total = sum(rows.values())
    return {"rows": float(total), "tokens": float(total * context), **{f"{n}_rows": float(r) for n, r in rows.items()}}


def _encoded(encoder: Encoder, data: InputArtifact, split: str) -> Iterator[npt.NDArray[np.int32]]:
    from tasks.data.columns import iterate_texts

    for texts in iterate_texts(data.path, split):
        yield from encoder.encode(texts)


STAGE = Stage(kind="pack", version=1, makes="tokens", params=Params, run=run)
