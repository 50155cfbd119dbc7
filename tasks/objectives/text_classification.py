"""Text classification: one label a text.

Every token votes: the model scores the classes at each position, and the score of the text is the mean over its tokens,
which is the same as a linear head on the mean of the last hidden states. A decoder that was pretrained to name the next
token keeps local features at its last position, so reading that one alone (HF's sequence classification) threw away
what pretraining had learned: measured on the quickstart, the pretrained network then lost to random weights.

Reads a `dataset` with `text` and `label`. The classes are numbered in the order of dataset.json, and the model carries
their names. The unit of the loss is the example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from infra.errors import StageError
from tasks.objectives import Batch, Feature, Objective, Predictions, SpecialIds

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from tasks.stage import InputArtifact

SHOWN = 8


class TextClassification(Objective):
    """See the module."""

    name: Literal["text_classification"] = Field("text_classification", description="One label a text.")

    data_types = ("dataset",)
    primary_metric = "f1_macro"
    greater_is_better = True

    @property
    def auto_class(self) -> str:
        return "AutoModelForTokenClassification"

    def head(self, data: InputArtifact) -> dict[str, Any]:
        from tasks.training.text_features import dataset_labels

        labels = dataset_labels(data)
        return {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: i for i, label in enumerate(labels)},
        }

    def features(
        self, data: InputArtifact, split: str, tokenizer: PreTrainedTokenizerFast | None, max_length: int
    ) -> Sequence[Feature]:
        from tasks.training.text_features import dataset_labels, read_split, tokenized

        numbers = {label: i for i, label in enumerate(dataset_labels(data))}
        table = read_split(data, split, columns=("text", "label"))
        unknown = sorted({str(label) for label in table["label"]} - numbers.keys())
        if unknown:
            raise StageError(
                f"split {split!r} has a label that dataset.json does not list: {unknown[0]!r}",
                where=data.stage,
                hint=f"Known labels: {', '.join(numbers)}.",
            )
        rows = tokenized(table["text"], tokenizer, max_length)
        return [{"input_ids": ids, "label": numbers[label]} for ids, label in zip(rows, table["label"], strict=True)]

    def collate(self, features: Sequence[Feature], special: SpecialIds) -> dict[str, torch.Tensor]:
        import torch

        from tasks.training.text_features import pad_token_ids

        input_ids, attention_mask = pad_token_ids([f["input_ids"] for f in features], special.pad)
        labels = torch.tensor([f["label"] for f in features], dtype=torch.int64)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    def scores(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The model's output [B, T, C] -> float32 [B, C]: the mean over each text's tokens, without padding."""
        import torch

        weights = batch["attention_mask"].to(torch.float32).unsqueeze(-1)
        return (logits.float() * weights).sum(1) / weights.sum(1).clamp(min=1.0)

    def loss(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, int]:
        import torch.nn.functional as F

        scores = self.scores(logits, batch)
        return F.cross_entropy(scores, batch["labels"], reduction="sum"), len(batch["labels"])

    def soft_loss(
        self, logits: torch.Tensor, teacher_logits: torch.Tensor, batch: Batch, temperature: float
    ) -> torch.Tensor:
        from tasks.compression.distill import distillation

        return distillation(self.scores(logits, batch), self.scores(teacher_logits, batch), temperature)

    def predictions(self, logits: npt.NDArray[Any], batch: Mapping[str, npt.NDArray[Any]]) -> Predictions:
        """`labels`: int64 [B], the truth; `logits`: float32 [B, C]."""
        import numpy as np
        import torch

        tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in batch.items()}
        scores = self.scores(torch.from_numpy(np.asarray(logits)), tensors)
        return {"labels": np.asarray(batch["labels"], np.int64), "logits": scores.numpy()}

    def metrics(self, predictions: Predictions, weights: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
        from tasks.evaluation.classification import classification_metrics

        return classification_metrics(predictions["labels"], predictions["logits"], weights)

    def baselines(self, train: Sequence[Feature], heldout: Sequence[Feature]) -> dict[str, float]:
        """Macro F1 of always naming the commonest class of the training split."""
        import numpy as np

        from tasks.evaluation.classification import classification_metrics

        labels = np.array([f["label"] for f in heldout])
        counts = np.bincount([f["label"] for f in train], minlength=int(labels.max()) + 1)
        logits = np.zeros((len(labels), len(counts)), np.float32)
        logits[:, int(counts.argmax())] = 1.0
        scores = classification_metrics(labels, logits, np.ones((1, len(labels))))
        return {"majority": float(scores[self.primary_metric][0])}

    def samples(self, model: PreTrainedModel, tokenizer: Any, heldout: Sequence[Feature]) -> list[dict[str, str]]:
        """Eight heldout texts spread over the split: how each begins, its class, and the class named."""
        import numpy as np
        import torch

        places = np.linspace(0, len(heldout) - 1, min(SHOWN, len(heldout))).astype(int)
        chosen = [heldout[int(i)] for i in places]
        batch = self.collate(chosen, SpecialIds.of(model.config))
        with torch.no_grad():
            output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        guesses = self.scores(output, batch).argmax(-1).tolist()
        names: Any = model.config.id2label
        return [
            {
                "text": tokenizer.decode(feature["input_ids"].tolist())[:240],
                "truth": str(names[feature["label"]]),
                "prediction": str(names[guess]),
            }
            for feature, guess in zip(chosen, guesses, strict=True)
        ]


OBJECTIVE = TextClassification
