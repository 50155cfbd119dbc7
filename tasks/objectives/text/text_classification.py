"""Text classification: one label a text, several labels, or a number; of one text or of a pair.

`pooling: mean`: every token votes. The model scores the classes at each position, and the score of the text is the mean
over its tokens, which is the same as a linear head on the mean of the last hidden states. A decoder that was pretrained
to name the next token keeps local features at its last position, so reading that one alone (HF's sequence
classification) threw away what pretraining had learned: measured on the quickstart, the pretrained network then lost to
random weights. `pooling: model`: HF's sequence classification as it comes, which is what encoders (BERT) are used with.

Reads a `dataset` with `text` and, for one label, `label`; how labels are numbered and what the loss is:
`tasks/objectives/shared/classification.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tasks.objective import Batch, Feature, Port, spread
from tasks.objectives.shared.classification import MEANS, Classification
from tasks.objectives.shared.tokenized import TOKENS, TokenExamples
from tasks.objectives.text.inputs.own_text import OwnText

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from tasks.stage import InputArtifact

SHOWN = 8


class TextClassification(Classification, OwnText):
    """See the module."""

    name: Literal["text_classification"] = Field("text_classification", description="Labels or a number for a text.")
    pair: str | None = Field(None, description="Column of a second text, judged together with the first. None: none.")
    pooling: Literal["mean", "model"] = Field(
        "mean",
        description="`mean`: the scores of all tokens, averaged. `model`: as Hugging Face's sequence classification "
        "of the model's family does it.",
    )

    training_options = frozenset({"pooling", "class_weights", "label_smoothing"})

    @property
    def auto_class(self) -> str:
        mean = self.pooling == "mean"
        return "AutoModelForTokenClassification" if mean else "AutoModelForSequenceClassification"

    @property
    def postprocessing_code(self) -> str:
        if self.pooling != "mean":
            return ""
        return (
            'mask = batch["attention_mask"][..., None]\n'
            "scores = (logits * mask).sum(1) / mask.sum(1)  # every token votes; a row a text, a column a label\n"
            "print(scores)\n"
        )

    @property
    def inputs(self) -> Mapping[str, Port]:
        types = {"token_type_ids": Port("int64", TOKENS, mask="attention_mask")} if self.pair else {}
        return {**super().inputs, **types}

    @property
    def outputs(self) -> Mapping[str, Port]:
        """mean: a row a token. model: a row a text."""
        means = MEANS[self.problem]
        if self.pooling == "mean":
            return {"logits": Port("float32", (*TOKENS, "classes"), means, mask="attention_mask")}
        return {"logits": Port("float32", ("batch", "classes"), means)}

    def head(self, data: InputArtifact) -> dict[str, Any]:
        return super().head(data) | ({"problem_type": self._problem_type} if self.pooling == "model" else {})

    def examples(self, data: InputArtifact, split: str, *, labelled: bool = True) -> Sequence[Feature]:
        from tasks.data.dataset.split import read_split
        from tasks.objectives.text.inputs.texts import tokenized, tokenized_pairs

        table = read_split(data, split, columns=("text", *((self.pair,) if self.pair else ())))
        if self.pair is None:
            rows: list[dict[str, Any]] = [
                {"input_ids": ids} for ids in tokenized(table["text"], self.tokenizer, self.max_length)
            ]
        else:
            seconds = [text or "" for text in table[self.pair]]
            found = tokenized_pairs(table["text"], seconds, self.tokenizer, self.max_length)
            rows = [{**row, "second": text} for row, text in zip(found, seconds, strict=True)]
        if labelled:
            labels, weights = self.truth(data, split)
            weighted = {} if weights is None else {"class_weights": weights}
            rows = [{**row, "label": label, **weighted} for row, label in zip(rows, labels, strict=True)]
        return TokenExamples(self, rows, table["text"])

    def with_text(self, feature: Feature, text: str) -> Feature:
        from tasks.objectives.text.inputs.texts import tokenized_pairs

        if self.pair is None:
            return super().with_text(feature, text)
        return {**feature, **tokenized_pairs([text], [feature["second"]], self.tokenizer, self.max_length)[0]}

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        from tasks.objectives.shared.padding import pad_token_ids

        input_ids, attention_mask = pad_token_ids([f["input_ids"] for f in features], self.special.pad)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, **self.collated_truth(features)}
        if self.pair is not None:
            batch["token_type_ids"] = pad_token_ids([f["token_type_ids"] for f in features], 0)[0]
        return batch

    def scores(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The model's output -> float32 [B, C], or [B] for a number.

        mean: [B, T, C], averaged over each text's tokens, without padding. model: [B, C] as it is.
        """
        if self.pooling == "mean":
            weights = batch["attention_mask"].float().unsqueeze(-1)
            logits = (logits.float() * weights).sum(1) / weights.sum(1).clamp(min=1.0)
        return super().scores(logits, batch)

    def baselines(self, train: Sequence[Feature], heldout: Sequence[Feature]) -> dict[str, float]:
        """Beside those of all: length, of a number the correlation with the text's length, in the direction it has in
        the training split.
        """
        import numpy as np

        from tasks.metrics.regression import spearman

        if self.problem != "regression":
            return super().baselines(train, heldout)
        found = []
        for features in (train, heldout):
            lengths = np.array([self.length(f) for f in features], np.float64)
            numbers = np.array([f["label"] for f in features], np.float64)
            found.append(float(np.nan_to_num(spearman(numbers, lengths, np.ones((1, len(numbers))))[0])))
        return {"length": found[1] if found[0] >= 0 else -found[1]}

    def samples(self, model: PreTrainedModel, heldout: Sequence[Feature]) -> list[dict[str, str]]:
        """Eight heldout texts spread over the split: how each begins, the truth, and what the model says."""
        import torch

        from tasks.models.inputs import model_inputs

        tokenizer: Any = self.tokenizer
        chosen = [heldout[i] for i in spread(len(heldout), SHOWN)]
        batch = self.collate(chosen)
        with torch.no_grad():
            scores = self.scores(self.read(model(**model_inputs(batch, model)))["logits"], batch).numpy()
        shown = self.shown_answers(chosen, scores, model.config.id2label)
        texts = (tokenizer.decode(feature["input_ids"].tolist())[:240] for feature in chosen)
        return [{"text": text, **answers} for text, answers in zip(texts, shown, strict=True)]


OBJECTIVE = TextClassification
