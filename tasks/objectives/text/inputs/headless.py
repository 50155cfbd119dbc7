"""Texts for a student of an encoder that has no head yet (general distillation; Jiao et al., 2020).

Nothing comes out at the end that could be right or wrong: what the layers say is all there is to learn. The student is
as general as its teacher, and is fine-tuned, or distilled for a task, afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from tasks.objective import Batch, Feature, Objective, SpecialIds

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from tasks.stage import InputArtifact


class Headless(Objective):
    """Batches of texts, whose unit is the text. No stage offers it by name: it has no loss, prediction or metric."""

    name: Literal["headless"] = "headless"

    data_types = ("dataset",)
    primary_metric = "loss"
    greater_is_better = False

    @property
    def auto_class(self) -> str:
        return "AutoModel"

    def features(
        self, data: InputArtifact, split: str, tokenizer: PreTrainedTokenizerFast | None, max_length: int
    ) -> Sequence[Feature]:
        from tasks.data.dataset.split import read_split
        from tasks.objectives.text.inputs.texts import tokenized

        texts = read_split(data, split, columns=("text",))["text"]
        return [{"input_ids": row} for row in tokenized(texts, tokenizer, max_length)]

    def collate(self, features: Sequence[Feature], special: SpecialIds) -> dict[str, torch.Tensor]:
        from tasks.objectives.shared.padding import pad_token_ids

        input_ids, attention_mask = pad_token_ids([feature["input_ids"] for feature in features], special.pad)
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def units(self, batch: Batch) -> float:
        return len(batch["input_ids"])

    def output(self, output: Any) -> torch.Tensor:
        hidden: torch.Tensor = output.last_hidden_state
        return hidden
