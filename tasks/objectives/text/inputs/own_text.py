"""Examples that are a text of their own, which may change: what augmentation needs of an objective."""

from __future__ import annotations

from tasks.objective import Feature
from tasks.objectives.shared.tokenized import Tokenized


class OwnText(Tokenized):
    """An objective of which the token ids of a changed `text` may take the place of an example's `input_ids`."""

    augmentation = "text"

    def with_text(self, feature: Feature, text: str) -> Feature:
        from tasks.objectives.text.inputs.texts import tokenized

        return {**feature, "input_ids": tokenized([text], self.tokenizer, self.max_length)[0]}
