"""How a model writes: settings of `generate` of transformers, by the names they have there."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from tasks.stage import StageParams

SAMPLING = ("temperature", "top_k", "top_p")


class Decoding(StageParams):
    """Greedy search unless `num_beams` or `do_sample` says otherwise. A model's own `generation_config.json` decides
    nothing but which tokens are special: two models are always asked in the same way."""

    max_new_tokens: int = Field(64, ge=1, description="Most tokens of an output, the one that ends it included.")
    min_new_tokens: int = Field(0, ge=0, description="Tokens before the end of text may come.")
    num_beams: int = Field(1, ge=1, description="Beams of a beam search. 1: none.")
    length_penalty: float | None = Field(
        None, description="Beams are ranked by their log-likelihood over length to this power. None: 1."
    )
    do_sample: bool = Field(False, description="Draw each token by its probability instead of taking the likeliest.")
    temperature: float | None = Field(None, gt=0, description="Logits are divided by this before drawing. None: 1.")
    top_k: int | None = Field(None, ge=1, description="Draw among this many likeliest tokens. None: all.")
    top_p: float | None = Field(
        None, gt=0, lt=1, description="Draw among the likeliest tokens that make up this probability. None: all."
    )
    repetition_penalty: float = Field(
        1.0,
        gt=0,
        description="Above 1, tokens that stand in the text already become less likely (Keskar et al., 2019).",
    )
    no_repeat_ngram_size: int = Field(0, ge=0, description="No run of this many tokens comes twice. 0: any may.")
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list, description="Strings that end an output; it is cut before the first of them."
    )
    seed: int = Field(0, ge=0, lt=2**64, description="Seed of what is drawn, one stream for each example.")
    batch_size: int = Field(16, ge=1, description="Examples written at once; no output depends on it.")

    @model_validator(mode="after")
    def _no_contradiction(self) -> Decoding:
        given = [name for name in SAMPLING if getattr(self, name) is not None]
        if given and not self.do_sample:
            raise ValueError(f"`{given[0]}` is about drawing tokens: set `do_sample: true`, or leave it out")
        if self.do_sample and self.num_beams > 1:
            raise ValueError("`do_sample` draws one text and `num_beams` searches the likeliest: choose one of them")
        if self.length_penalty is not None and self.num_beams == 1:
            raise ValueError("`length_penalty` ranks beams: set `num_beams` above 1, or leave it out")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError("`min_new_tokens` is more than `max_new_tokens`")
        return self
