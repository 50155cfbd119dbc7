"""What objectives of encoder-decoder language models share: their batch, loss, predictions, metrics and samples.

An example reads `input_ids` and is to write `target_ids`, which the end-of-text token closes. The decoder sees its own
target shifted right behind the model's start token (teacher forcing; Sutskever et al., 2014). The unit of the loss is
the target token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tasks.objective import Arrays, Batch, Feature, Outputs, Port, Predictions, spread
from tasks.objectives.shared.token_labels import TokenLabels
from tasks.objectives.shared.tokenized import Tokenized

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from transformers import PreTrainedModel

SHOWN = 4
SHOWN_TOKENS = 64
DECODED = ("batch", "decoder_tokens")


class EncoderDecoder(TokenLabels, Tokenized):
    """An objective whose features have `input_ids`, `target_ids`, `vocabulary` and, where known, `target_bytes`."""

    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of a target's weight that is spread over all tokens (Szegedy et al., 2016)."
    )

    primary_metric = "cross_entropy"
    greater_is_better = False

    @property
    def auto_class(self) -> str:
        return "AutoModelForSeq2SeqLM"

    @property
    def inputs(self) -> Mapping[str, Port]:
        return {**super().inputs, "decoder_input_ids": Port("int64", DECODED)}

    @property
    def outputs(self) -> Mapping[str, Port]:
        return {"logits": Port("float32", (*DECODED, "classes"), "classes")}

    def length(self, feature: Feature) -> int:
        return len(feature["input_ids"]) + len(feature.get("target_ids", ()))

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        """`target_bytes` [B]: bytes of the text that each target spells, where the features know it."""
        import numpy as np
        import torch

        from tasks.losses.cross_entropy import IGNORED
        from tasks.objectives.shared.padding import pad_token_ids

        input_ids, attention_mask = pad_token_ids([f["input_ids"] for f in features], self.special.pad)
        labels, _ = pad_token_ids([f["target_ids"] for f in features], IGNORED)
        shifted = [np.append(self.special.decoder_start, f["target_ids"][:-1]) for f in features]
        decoder_input_ids, _ = pad_token_ids(shifted, self.special.pad)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        batch |= {"decoder_input_ids": decoder_input_ids, "labels": labels}
        if "target_bytes" in features[0]:
            batch["target_bytes"] = torch.tensor([f["target_bytes"] for f in features], dtype=torch.int64)
        return batch

    def work(self, batch: Batch) -> float:
        """Tokens of both sides."""
        return int(batch["attention_mask"].sum()) + self.units(batch)

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[torch.Tensor, int]:
        import torch.nn.functional as F

        from tasks.losses.cross_entropy import IGNORED, summed_cross_entropy

        scores, targets = outputs["logits"].flatten(0, 1), batch["labels"].flatten()
        if not self.label_smoothing:
            return summed_cross_entropy(scores, targets), self.units(batch)
        smoothed = F.cross_entropy(
            scores.float(), targets, ignore_index=IGNORED, reduction="sum", label_smoothing=self.label_smoothing
        )
        return smoothed, self.units(batch)

    def predictions(self, outputs: Arrays, batch: Arrays) -> Predictions:
        """See `token_scores`; `bytes`: int64 [B], of the targets' texts, where known."""
        from tasks.metrics.tokens import token_scores

        found = token_scores(outputs["logits"], batch["labels"])
        return {**found, "bytes": batch["target_bytes"]} if "target_bytes" in batch else found

    def choices(self, outputs: Arrays, batch: Arrays) -> npt.NDArray[np.integer]:
        """The likeliest of each target token, [U]."""
        from tasks.metrics.tokens import likeliest

        return likeliest(outputs["logits"], batch["labels"])

    def metrics(self, predictions: Predictions, weights: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
        """Of target tokens, each given those before it: see `token_metrics`."""
        from tasks.metrics.tokens import token_metrics

        return token_metrics(predictions, weights)

    def baselines(self, train: Sequence[Feature], heldout: Sequence[Feature]) -> dict[str, float]:
        """Nats a target token of the training targets' token frequencies."""
        import numpy as np

        from tasks.metrics.tokens import unigram_nats

        seen, wanted = (np.concatenate([f["target_ids"] for f in features]) for features in (train, heldout))
        return {"unigram": unigram_nats(seen, wanted)}

    def samples(self, model: PreTrainedModel, heldout: Sequence[Feature]) -> list[dict[str, str]]:
        """Four heldout examples spread over the split: how each begins, its reference, what greedy search writes."""
        import torch

        tokenizer: Any = self.tokenizer
        special, generate = self.special, getattr(model, "generate")  # noqa: B009 - untyped there
        chosen = [heldout[i] for i in spread(len(heldout), SHOWN)]
        batch = self.collate(chosen)
        with torch.no_grad():
            written = generate(
                batch["input_ids"],
                attention_mask=batch["attention_mask"],
                do_sample=False,
                num_beams=1,
                max_new_tokens=min(SHOWN_TOKENS, int(getattr(model.config, "max_position_embeddings", 0) or 512) - 1),
                pad_token_id=self.special.pad,
                eos_token_id=chosen[0]["vocabulary"].end,
                decoder_start_token_id=special.decoder_start,
            )
        shown = []
        for feature, output in zip(chosen, written.tolist(), strict=True):
            shown.append(
                {
                    "text": tokenizer.decode(feature["input_ids"].tolist())[:240],
                    "truth": self.as_text(tokenizer, feature["target_ids"].tolist())[:240],
                    "prediction": self.as_text(tokenizer, output[1:])[:240],
                }
            )
        return shown

    def as_text(self, tokenizer: Any, ids: list[int]) -> str:
        """A target, for people to read."""
        return str(tokenizer.decode(ids, skip_special_tokens=True))
