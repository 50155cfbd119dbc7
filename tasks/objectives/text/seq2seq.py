"""Sequence to sequence: write one text for another (Sutskever et al., 2014): translation, summarisation.

Reads a `dataset` with the source in `text` and the text to be written in another column (`columns: {target: string}` of
a source). Judged here by how likely the references are; stage `generate` judges what a model writes by itself.
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
    from tasks.objectives.shared.text_prompt import Prompt
    from tasks.stage import InputArtifact


class Seq2Seq(EncoderDecoder, OwnText):
    """See the module."""

    name: Literal["seq2seq"] = Field("seq2seq", description="Write one text for another.")
    target: str = Field("target", min_length=1, description="Column with the text to be written.")
    max_target_length: int | None = Field(
        None, ge=1, description="Tokens kept of a target, the one that ends it included. None: as many as of a source."
    )

    data_types = ("dataset",)
    produces = "text"
    product_metrics = ("chrf", "bleu", "rouge1", "rouge2", "rougeL", "token_f1", "exact_match")

    def examples(self, data: InputArtifact, split: str, *, labelled: bool = True) -> Sequence[Feature]:
        from tasks.data.dataset.split import read_split
        from tasks.objectives.shared.target_texts import tokenized_targets
        from tasks.objectives.text.inputs.packed import tokenizer_of
        from tasks.objectives.text.inputs.texts import tokenized
        from tasks.objectives.text.inputs.vocabulary import Vocabulary

        tokenizer = tokenizer_of(data, self.tokenizer)
        vocabulary = Vocabulary.of(tokenizer)
        end = vocabulary.require_end(data.stage)
        table = read_split(data, split, columns=("text", self.target))
        wrong = [i for i, text in enumerate(table[self.target]) if not isinstance(text, str)]
        if wrong:
            raise StageError(
                f"column {self.target!r} of split {split!r} holds no text in {len(wrong)} rows, the first being row "
                f"{wrong[0]}: {table[self.target][wrong[0]]!r}",
                where=data.stage,
                hint="Leave rows without a target out of the source, and give the column the type `string`.",
            )
        sources = tokenized(table["text"], tokenizer, self.max_length)
        targets = tokenized_targets(table[self.target], tokenizer, end, self.max_target_length or self.max_length)
        rows = [
            {"input_ids": source, "target_ids": target.ids, "target_bytes": target.size}
            for source, target in zip(sources, targets, strict=True)
        ]
        return TokenExamples(self, rows, table["text"], vocabulary=vocabulary)

    def requests(self, data: InputArtifact, split: str) -> Sequence[Prompt]:
        """The sources, as they are read in training, and their targets."""
        from tasks.objectives.text.inputs.prompts import source_prompts

        return source_prompts(data, split, self.target, self.tokenizer, self.max_length)

    @property
    def reference_column(self) -> str | None:
        return self.target

    def with_reference(self, value: Any, output: Any) -> Any:
        return output.text


OBJECTIVE = Seq2Seq
