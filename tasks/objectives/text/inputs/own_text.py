"""Examples that are a text of their own, which may change: what augmentation needs of an objective."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.objective import Feature, Objective

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class OwnText(Objective):
    """An objective of which the token ids of a changed `text` may take the place of an example's `input_ids`."""

    def with_text(
        self, feature: Feature, text: str, tokenizer: PreTrainedTokenizerFast | None, max_length: int
    ) -> Feature:
        from tasks.objectives.text.inputs.texts import tokenized

        return {**feature, "input_ids": tokenized([text], tokenizer, max_length)[0]}
