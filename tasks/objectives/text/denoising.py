"""Denoising by span corruption: write the spans that were left out of a text (Raffel et al., 2020; T5's pretraining).

Reads packed `tokens` (spans may run over the end of a document, as in T5) or the texts of a `dataset`, cut to
`max_length`. Which spans are left out is drawn again each time an example comes, and once in a held-out split. The unit
of the loss is the target token, sentinels included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from infra.errors import StageError
from tasks.objective import Feature
from tasks.objectives.shared.encoder_decoder import EncoderDecoder
from tasks.objectives.shared.tokenized import TokenExamples
from tasks.objectives.text.inputs.own_text import OwnText

if TYPE_CHECKING:
    from tasks.stage import InputArtifact


class Denoising(EncoderDecoder, OwnText):
    """See the module."""

    name: Literal["denoising"] = Field("denoising", description="Write the spans that were left out of a text.")
    noise_density: float = Field(0.15, gt=0, lt=1, description="Share of an example's tokens that are left out.")
    mean_span_length: float = Field(3.0, ge=1, description="Tokens in a left-out span, on average.")

    data_types = ("tokens", "dataset")

    def examples(self, data: InputArtifact, split: str, *, labelled: bool = True) -> Sequence[Feature]:
        import numpy as np

        from tasks.data.dataset.split import read_split
        from tasks.objectives.text.inputs.packed import packed_rows, tokenizer_of
        from tasks.objectives.text.inputs.span_corruption import noise_shape
        from tasks.objectives.text.inputs.texts import tokenized
        from tasks.objectives.text.inputs.vocabulary import Vocabulary

        tokenizer = tokenizer_of(data, self.tokenizer)
        vocabulary = Vocabulary.of(tokenizer)
        vocabulary.require_end(data.stage)
        rows: Sequence[Feature]
        texts: list[str] | None = None
        if data.manifest.type == "dataset":
            texts = read_split(data, split, columns=("text",))["text"]
            rows = [{"input_ids": ids} for ids in tokenized(texts, tokenizer, self.max_length)]
            longest = max(len(row["input_ids"]) for row in rows)
        else:
            packed = rows = packed_rows(data, split, tokenizer, self.max_length)
            longest = int(np.add.reduceat(packed.length, packed.first[:-1]).max())
        needed = 1 + noise_shape(longest, self.noise_density, self.mean_span_length)[1]
        if len(vocabulary.sentinels) < needed:
            raise StageError(
                f"{longest} tokens with {needed - 1} spans left out need {needed} sentinels, and the tokenizer has "
                f"{len(vocabulary.sentinels) or 'none'}",
                where=data.stage,
                hint=f"Set `sentinels: {needed}` in the `tokenizer` stage (a given one needs <extra_id_0>, "
                "<extra_id_1>, ...), or raise mean_span_length.",
            )
        return TokenExamples(self, rows, texts, vocabulary=vocabulary)

    def noised(self, feature: Feature, seed: int) -> Feature:
        import numpy as np

        from tasks.objectives.text.inputs.span_corruption import corrupted

        read, written = corrupted(
            feature["input_ids"],
            feature["vocabulary"],
            np.random.default_rng(seed),
            density=self.noise_density,
            mean_span=self.mean_span_length,
        )
        return {"input_ids": read, "target_ids": written, "vocabulary": feature["vocabulary"]}

    def baselines(self, train: Sequence[Feature], heldout: Sequence[Feature]) -> dict[str, float]:
        """Nats a target token of the frequencies in the training examples' targets, each drawn once."""
        return super().baselines([self.noised(feature, place) for place, feature in enumerate(train)], heldout)

    def as_text(self, tokenizer: Any, ids: list[int]) -> str:
        """With the sentinels, which say where a span belongs; without padding."""
        return str(tokenizer.decode([i for i in ids if i not in (tokenizer.pad_token_id, tokenizer.eos_token_id)]))


OBJECTIVE = Denoising
