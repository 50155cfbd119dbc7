"""Sentence embedding: texts that belong together come to lie close, all others apart (Reimers and Gurevych, 2019).

The embedding is the mean of the last hidden states over a text's tokens, of length one. Reads a `dataset` whose `text`
is the anchor and whose column `positive` holds the text it belongs to: a question and its answer, a title and its body.
The loss is multiple-negatives ranking (Henderson et al., 2017; InfoNCE): of the positives of a group each anchor has to
choose its own, by cosine similarity over `temperature`. The other positives are its negatives, apart from those that
are the same text as its own or belong to the same anchor.

A group is `group` consecutive examples of the data stream, whatever the micro-batches and ranks: a larger group is a
harder task and another result, so it is an option, and micro-batches hold whole groups (`Objective.examples_per_loss`).
The unit of the loss is the anchor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tasks.objective import Arrays, Batch, Feature, Outputs, Port, Predictions, spread
from tasks.objectives.shared.tokenized import TOKENS, TokenExamples
from tasks.objectives.text.inputs.own_text import OwnText

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from transformers import PreTrainedModel

    from tasks.stage import InputArtifact

SHOWN = 8
AMONG = 256
BATCH = 32


class SentenceEmbedding(OwnText):
    """See the module."""

    name: Literal["sentence_embedding"] = Field(
        "sentence_embedding", description="Vectors by which texts that belong together are found."
    )
    positive: str = Field(description="Column with the text that belongs to each text.")
    score: str | None = Field(
        None, description="Column that says how alike the two texts are, to judge similarities by. None: not judged."
    )
    temperature: float = Field(0.05, gt=0, description="Cosine similarities are divided by it.")
    symmetric: bool = Field(False, description="Each positive has to choose its anchor too; the mean of both losses.")
    group: int = Field(16, ge=2, description="Consecutive examples whose positives are each other's negatives.")

    data_types = ("dataset",)
    primary_metric = "mrr"
    greater_is_better = True
    training_options = frozenset({"temperature", "symmetric", "group"})

    @property
    def auto_class(self) -> str:
        return "AutoModel"

    @property
    def examples_per_loss(self) -> int:
        return self.group

    def examples(self, data: InputArtifact, split: str, *, labelled: bool = True) -> Sequence[Feature]:
        from tasks.data.dataset.split import read_texts
        from tasks.objectives.shared.targets import target_numbers
        from tasks.objectives.text.inputs.texts import tokenized

        anchors, positives = (
            tokenized(read_texts(data, split, column), self.tokenizer, self.max_length)
            for column in ("text", self.positive)
        )
        scores = (
            [{}] * len(anchors)
            if self.score is None
            else [{"score": number} for number in target_numbers(data, split, self.score)]
        )
        rows = [
            {"input_ids": anchor, "positive": positive, **score}
            for anchor, positive, score in zip(anchors, positives, scores, strict=True)
        ]
        return TokenExamples(self, rows, read_texts(data, split, "text"))

    def length(self, feature: Feature) -> int:
        return max(len(feature["input_ids"]), len(feature["positive"]))

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        """Two rows an example, the anchor and its positive, so that a group's rows lie together: `input_ids` [2B, T].

        `labels`: int64 [B], the number of each anchor's text; `texts`: int64 [B], of each positive's. Equal texts of a
        batch have equal numbers. `scores`: float32 [B].
        """
        import torch

        from tasks.objectives.shared.padding import pad_token_ids

        rows = [ids for feature in features for ids in (feature["input_ids"], feature["positive"])]
        input_ids, attention_mask = pad_token_ids(rows, self.special.pad)
        known: dict[bytes, int] = {}
        numbers = torch.tensor([known.setdefault(ids.astype("int64").tobytes(), len(known)) for ids in rows])
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        batch |= {"labels": numbers[0::2].clone(), "texts": numbers[1::2].clone()}
        if self.score is not None:
            batch["scores"] = torch.tensor([f["score"] for f in features], dtype=torch.float32)
        return batch

    @property
    def outputs(self) -> Mapping[str, Port]:
        return {"logits": Port("float32", (*TOKENS, "hidden"), mask="attention_mask")}

    def read(self, output: Any) -> Outputs:
        """`logits` [2B, T, H]: the last hidden states."""
        return {"logits": output.last_hidden_state}

    def embeddings(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Last hidden states [N, T, H] -> float32 [N, H] of length one."""
        import torch
        import torch.nn.functional as F

        weights = attention_mask.to(torch.float32).unsqueeze(-1)
        return F.normalize((hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1.0), dim=-1)

    def similarities(self, hidden: torch.Tensor, batch: Batch) -> Iterator[torch.Tensor]:
        """Of each group [G, G]: anchors by positives, over the temperature; far down where neither right nor wrong."""
        import torch

        found = self.embeddings(hidden, batch["attention_mask"])
        anchors, positives = found[0::2], found[1::2]
        for start in range(0, len(anchors), self.group):
            here = slice(start, start + self.group)
            names, texts = batch["labels"][here], batch["texts"][here]
            alike = (names[:, None] == names) | (texts[:, None] == texts)
            alike &= ~torch.eye(len(names), dtype=torch.bool, device=alike.device)
            # Finite, so that the difference of two of them is a number where distributions are compared.
            yield (anchors[here] @ positives[here].T / self.temperature).masked_fill(alike, -1e4)

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[torch.Tensor, float]:
        import torch
        import torch.nn.functional as F

        total = torch.zeros((), device=outputs["logits"].device)
        for table in self.similarities(outputs["logits"], batch):
            own = torch.arange(len(table), device=table.device)
            loss = F.cross_entropy(table, own, reduction="sum")
            if self.symmetric:
                loss = (loss + F.cross_entropy(table.T, own, reduction="sum")) / 2
            total = total + loss
        return total, self.units(batch)

    def distillation_loss(
        self, outputs: Outputs, teacher_outputs: Outputs, batch: Batch, temperature: float
    ) -> torch.Tensor:
        """Of the distributions over a group's positives, so that teacher and student may differ in hidden size."""
        import torch

        from tasks.losses.distillation import distillation

        total = torch.zeros((), device=outputs["logits"].device)
        pairs = zip(
            self.similarities(outputs["logits"], batch),
            self.similarities(teacher_outputs["logits"], batch),
            strict=True,
        )
        for student, teacher in pairs:
            loss = distillation(student, teacher, temperature)
            if self.symmetric:
                loss = (loss + distillation(student.T, teacher.T, temperature)) / 2
            total = total + loss
        return total

    def predictions(self, outputs: Arrays, batch: Arrays) -> Predictions:
        """`anchors` and `positives`: float32 [B, H], of length one; `scores`: float32 [B] where there are any."""
        import numpy as np
        import torch

        found = self.embeddings(
            torch.from_numpy(np.asarray(outputs["logits"])), torch.from_numpy(np.asarray(batch["attention_mask"]))
        ).numpy()
        scores = {"scores": np.asarray(batch["scores"], np.float32)} if "scores" in batch else {}
        return {
            "anchors": np.ascontiguousarray(found[0::2]),
            "positives": np.ascontiguousarray(found[1::2]),
            **scores,
        }

    def metrics(self, predictions: Predictions, weights: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
        from tasks.metrics.regression import spearman
        from tasks.metrics.retrieval import ranks_of_own, retrieval_metrics

        anchors, positives = predictions["anchors"], predictions["positives"]
        found = retrieval_metrics(ranks_of_own(anchors, positives), weights)
        if "scores" in predictions:
            found["spearman"] = spearman(predictions["scores"], (anchors * positives).sum(1), weights)
        return found

    def baselines(self, train: Sequence[Feature], heldout: Sequence[Feature]) -> dict[str, float]:
        """tfidf: cosine similarity of the counts of token ids, each weighted by its rarity in the training split."""
        import numpy as np

        from tasks.metrics.retrieval import retrieval_metrics, tfidf_ranks

        known, anchors, positives = (
            [np.asarray(feature[name], np.int64) for features, name in found for feature in features]
            for found in (
                [(train, "input_ids"), (train, "positive")],
                [(heldout, "input_ids")],
                [(heldout, "positive")],
            )
        )
        ranks = tfidf_ranks(known, anchors, positives)
        return {"tfidf": float(retrieval_metrics(ranks, np.ones((1, len(ranks))))[self.primary_metric][0])}

    def samples(self, model: PreTrainedModel, heldout: Sequence[Feature]) -> list[dict[str, str]]:
        """Eight anchors of the first 256 heldout examples, and the nearest of these examples' positives."""
        import numpy as np
        import torch

        from tasks.models.inputs import model_inputs

        tokenizer: Any = self.tokenizer
        examples = [heldout[i] for i in range(min(AMONG, len(heldout)))]
        parts = []
        for start in range(0, len(examples), BATCH):
            batch = self.collate(examples[start : start + BATCH])
            with torch.no_grad():
                outputs = self.read(model(**model_inputs(batch, model)))
            parts.append(
                self.predictions(
                    {"logits": outputs["logits"].float().numpy()}, {name: t.numpy() for name, t in batch.items()}
                )
            )
        anchors, positives = (np.concatenate([part[name] for part in parts]) for name in ("anchors", "positives"))
        shown = []
        for i in spread(len(examples), SHOWN):
            nearest = int((positives @ anchors[i]).argmax())
            right = np.array_equal(examples[nearest]["positive"], examples[i]["positive"])
            shown.append(
                {
                    "text": tokenizer.decode(examples[i]["input_ids"].tolist())[:240],
                    "nearest": tokenizer.decode(examples[nearest]["positive"].tolist())[:240],
                    "right": "yes" if right else "no",
                }
            )
        return shown


OBJECTIVE = SentenceEmbedding
