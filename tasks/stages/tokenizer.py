"""tokenizer: learned from the training split of a dataset, or a given one in the Hugging Face format."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from infra.errors import StageError
from infra.keys import file_digest
from infra.sources_read import SourceFile, snapshot
from tasks.data.tokens.tokenizing import CLS, END, MASK, PAD, SENTINEL, SEP, UNKNOWN
from tasks.processors.given_tokenizer import FILES, VOCABULARY
from tasks.stage import Input, Job, Located, Stage, StageParams


class Params(StageParams):
    """Data and size of a new tokenizer, or the folder of a given one."""

    data: Annotated[str | None, Input("dataset")] = Field(None, description="Dataset whose training split is read.")
    algorithm: Literal["bpe", "wordpiece", "unigram"] = Field(
        "bpe",
        description="`bpe`: byte-level byte pair encoding; no text is unknown to it. `wordpiece`: as BERT has it, with "
        "case. `unigram`: a language model over pieces, with bytes for what they do not spell.",
    )
    vocab_size: int | None = Field(
        None,
        ge=258,
        le=1 << 20,
        description="Tokens, special ones included; for `bpe` and `unigram` 256 of them are bytes.",
    )
    mask_token: bool = Field(
        False, description="Adds `<|mask|>`, which models that learn by filling gaps (BERT) put into them."
    )
    cls_sep: bool = Field(
        False, description="Adds `<|cls|>` and `<|sep|>`, and puts a text between them, as BERT has it."
    )
    sentinels: int = Field(
        0,
        ge=0,
        le=1000,
        description="Adds so many of `<extra_id_0>`, `<extra_id_1>`, ..., which stand for left-out spans (T5).",
    )
    special_tokens: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None, description="Further tokens that no text is ever split into. None: none."
    )
    given: Annotated[str | None, Located()] = Field(
        None, description="Folder with a tokenizer in the Hugging Face format, taken as AutoTokenizer has it."
    )

    @model_validator(mode="after")
    def _learned_or_given(self) -> Params:
        if (self.given is None) == (self.data is None) or (self.data is None) != (self.vocab_size is None):
            raise ValueError("give `data` and `vocab_size` to learn a tokenizer, or `given` to take one")
        extra = self.extra_tokens()
        if self.given is not None and extra:
            raise ValueError("a `given` tokenizer is taken as it is: add special tokens to its files")
        twice = sorted({token for token in extra if extra.count(token) > 1 or token in (END, PAD, UNKNOWN)})
        if twice:
            raise ValueError(f"special_tokens: {twice[0]!r} is there already")
        return self

    def extra_tokens(self) -> list[str]:
        """Special tokens beside those every tokenizer has, in the order of their ids."""
        return [
            *([MASK] if self.mask_token else []),
            *([CLS, SEP] if self.cls_sep else []),
            *(SENTINEL.format(i) for i in range(self.sentinels)),
            *(self.special_tokens or []),
        ]


def sources(params: Params) -> list[SourceFile]:
    """The files of a given tokenizer. Raises StageError where they cannot be read."""
    if params.given is None:
        return []
    found = _files(params.given)
    if not any(path.name in VOCABULARY for path in found):
        raise StageError(
            f"there is no tokenizer in {params.given}",
            where="given",
            hint="A tokenizer is a folder with tokenizer.json and tokenizer_config.json, as save_pretrained writes it.",
        )
    try:
        return [SourceFile(path.name, file_digest(path)) for path in found]
    except OSError as error:
        raise StageError(f"cannot read {error.filename}: {error.strerror}", where="given") from error


def _files(folder: str) -> list[Path]:
    return [path for name in ("config.json", *FILES) if (path := Path(folder, name)).is_file()]


def run(job: Job[Params]) -> dict[str, float]:
    from tasks.data.dataset.layout import iterate_texts
    from tasks.data.tokens.tokenizing import load_tokenizer, save_tokenizer, train_tokenizer
    from tasks.processors.given_tokenizer import bring_tokenizer

    params = job.params
    if params.given is not None:
        folder = job.scratch / (Path(params.given).resolve().name or "tokenizer")
        read = snapshot({path.name: path for path in _files(params.given)}, folder)
        job.has_read(read)
        if not bring_tokenizer(folder, job.output, job.warn):
            raise StageError(f"no tokenizer could be made of the files in {params.given}", where="given")
        pairs = [[file.path, file.sha256] for file in read]
        (job.records / "sources.json").write_text(json.dumps(pairs) + "\n", encoding="utf-8")
        tokenizer, _ = load_tokenizer(job.output)
        return {"vocab_size": float(tokenizer.get_vocab_size())}
    assert params.vocab_size is not None
    if job.execution.threads != "auto":
        os.environ["RAYON_NUM_THREADS"] = str(job.execution.threads)
    data = job.input("data")
    texts = iterate_texts(data.path, data.split or "train")
    tokenizer = train_tokenizer(params.algorithm, texts, params.vocab_size, params.extra_tokens())
    size = tokenizer.get_vocab_size()
    if size < params.vocab_size:
        raise StageError(
            f"the data yields only {size} tokens, not {params.vocab_size}",
            where="vocab_size",
            hint=f"Set vocab_size to {size} or less, or give it more text.",
        )
    save_tokenizer(tokenizer, job.output)
    return {"vocab_size": float(size)}


STAGE = Stage(kind="tokenizer", version=2, makes="tokenizer", params=Params, run=run, sources=sources)
