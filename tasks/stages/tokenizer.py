"""tokenizer: a byte-level BPE tokenizer learned from the training split of a dataset."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import Field

from infra.errors import StageError
from tasks.stage import Input, Job, Stage, StageParams


class Params(StageParams):
    """What the tokenizer is learned from and how large it is."""

    data: Annotated[str, Input("dataset")] = Field(description="Dataset whose training split is read.")
    algorithm: Literal["bpe"] = Field(
        "bpe", description="`bpe`: byte-level byte pair encoding; no text is unknown to it."
    )
    vocab_size: int = Field(
        ge=258, le=1 << 20, description="Tokens, of which 256 are bytes and 2 are <|endoftext|> and <|pad|>."
    )


def run(job: Job[Params]) -> dict[str, float]:
    from tasks.data.columns import iterate_texts
    from tasks.data.tokenizing import save_tokenizer, train_bpe

    if job.execution.threads != "auto":
        os.environ["RAYON_NUM_THREADS"] = str(job.execution.threads)
    data = job.input("data")
    tokenizer = train_bpe(iterate_texts(data.path, data.split or "train"), job.params.vocab_size)
    size = tokenizer.get_vocab_size()
    if size < job.params.vocab_size:
        raise StageError(
            f"the data yields only {size} tokens, not {job.params.vocab_size}",
            where="vocab_size",
            hint=f"Set vocab_size to {size} or less, or give it more text.",
        )
    save_tokenizer(tokenizer, job.output)
    return {"vocab_size": float(size)}


STAGE = Stage(kind="tokenizer", version=1, makes="tokenizer", params=Params, run=run)
