"""Texts for a student of an encoder that has no head yet (general distillation; Jiao et al., 2020).

Nothing comes out at the end that could be right or wrong: what the layers say is all there is to learn. The student is
as general as its teacher, and is fine-tuned, or distilled for a task, afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from tasks.objective import Batch, Feature, Outputs
from tasks.objectives.shared.tokenized import TokenExamples
from tasks.objectives.text.inputs.own_text import OwnText

if TYPE_CHECKING:
    import torch

    from tasks.stage import InputArtifact


class Headless(OwnText):
    """Batches of texts, whose unit is the text. No stage offers it by name: it has no loss, prediction or metric."""

    name: Literal["headless"] = "headless"

    data_types = ("dataset",)
    primary_metric = "loss"
    greater_is_better = False

    @property
    def auto_class(self) -> str:
        return "AutoModel"

    def examples(self, data: InputArtifact, split: str, *, labelled: bool = True) -> Sequence[Feature]:
        from tasks.data.dataset.split import read_split
        from tasks.objectives.text.inputs.texts import tokenized

        texts = read_split(data, split, columns=("text",))["text"]
        rows = [{"input_ids": row} for row in tokenized(texts, self.tokenizer, self.max_length)]
        return TokenExamples(self, rows, texts)

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        from tasks.objectives.shared.padding import pad_token_ids

        input_ids, attention_mask = pad_token_ids([feature["input_ids"] for feature in features], self.special.pad)
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def units(self, batch: Batch) -> float:
        return len(batch["input_ids"])

    def read(self, output: Any) -> Outputs:
        return {"logits": output.last_hidden_state}


HEADLESS = Headless
