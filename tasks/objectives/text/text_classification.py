"""Text classification: one label a text, several labels, or a number; of one text or of a pair.

`pooling: mean`: every token votes. The model scores the classes at each position, and the score of the text is the mean
over its tokens, which is the same as a linear head on the mean of the last hidden states. A decoder that was pretrained
to name the next token keeps local features at its last position, so reading that one alone (HF's sequence
classification) threw away what pretraining had learned: measured on the quickstart, the pretrained network then lost to
random weights. `pooling: model`: HF's sequence classification as it comes, which is what encoders (BERT) are used with.

Reads a `dataset` with `text` and, for one label, `label`. Classes are numbered in the order of dataset.json, several
labels in that of their names, and the model carries the names: data that a given model is judged on, or taught on, are
numbered as it has them. The unit of the loss is the example; with class weights
an example counts its class's weight, so that the loss is torch's weighted mean. Of several labels and of a number the
loss is HF's: the mean of the binary cross-entropies, the squared error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from tasks.objective import Arrays, Batch, Feature, Outputs, Port, Predictions, class_head, spread
from tasks.objectives.shared.tokenized import TOKENS, TokenExamples
from tasks.objectives.text.inputs.own_text import OwnText

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from transformers import PreTrainedModel

    from tasks.losses.top_k import TopK
    from tasks.stage import InputArtifact

SHOWN = 8
PRIMARY = {"single_label": "f1_macro", "multi_label": "f1_micro", "regression": "spearman"}


class TextClassification(OwnText):
    """See the module."""

    name: Literal["text_classification"] = Field("text_classification", description="Labels or a number for a text.")
    problem: Literal["single_label", "multi_label", "regression"] = Field(
        "single_label", description="One of several classes, any number of labels, or a number."
    )
    pair: str | None = Field(None, description="Column of a second text, judged together with the first. None: none.")
    pooling: Literal["mean", "model"] = Field(
        "mean",
        description="`mean`: the scores of all tokens, averaged. `model`: as Hugging Face's sequence classification "
        "of the model's family does it.",
    )
    labels: str | None = Field(None, description="For multi_label: json column with the list of each text's labels.")
    target: str | None = Field(None, description="For regression: column with each text's number.")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="`balanced`: a class counts n / (classes x its examples), from the training split."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the truth given to all classes evenly.")

    data_types = ("dataset",)
    greater_is_better = True
    training_options = frozenset({"pooling", "class_weights", "label_smoothing"})

    @model_validator(mode="after")
    def _options_fit(self) -> TextClassification:
        for option, problem in (("labels", "multi_label"), ("target", "regression")):
            given = getattr(self, option) is not None
            if given and self.problem != problem:
                raise ValueError(f"`{option}` is for problem: {problem}, and this is {self.problem}")
            if not given and self.problem == problem:
                raise ValueError(f"problem: {problem} needs `{option}`, the name of a column")
        if self.problem != "single_label" and (self.class_weights != "none" or self.label_smoothing):
            raise ValueError("`class_weights` and `label_smoothing` are for problem: single_label")
        return self

    # The metric follows from an option here, and is the class's everywhere else.
    @property
    def primary_metric(self) -> str:  # type: ignore[override]
        return PRIMARY[self.problem]

    @property
    def truncatable(self) -> bool:  # type: ignore[override]
        return self.problem == "single_label"

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
        means: Any = {"multi_label": "choices", "regression": "numbers"}.get(self.problem, "classes")
        if self.pooling == "mean":
            return {"logits": Port("float32", (*TOKENS, "classes"), means, mask="attention_mask")}
        return {"logits": Port("float32", ("batch", "classes"), means)}

    @property
    def named_classes(self) -> bool:  # type: ignore[override]
        return self.problem != "regression"

    def head(self, data: InputArtifact) -> dict[str, Any]:
        kind = {"problem_type": self._problem_type} if self.pooling == "model" else {}
        return {"num_labels": 1, **kind} if self.target is not None else class_head(self._names(data)) | kind

    def _names(self, data: InputArtifact) -> Sequence[str]:
        """The classes in the order that numbers them: the model's, else the data's. StageError where they differ."""
        from tasks.data.dataset.split import dataset_labels
        from tasks.metrics.class_names import same_labels
        from tasks.objectives.shared.targets import label_names

        if self.labels is not None:
            return self._labels or label_names(data, self.labels)
        labels = dataset_labels(data)
        same_labels("the model", self._labels, labels, where=data.stage)
        return self._labels or labels

    @property
    def _problem_type(self) -> str:
        return "regression" if self.problem == "regression" else f"{self.problem}_classification"

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
            rows = [{**row, **true} for row, true in zip(rows, self._truth(data, split), strict=True)]
        return TokenExamples(self, rows, table["text"])

    def _truth(self, data: InputArtifact, split: str) -> list[dict[str, Any]]:
        from tasks.objectives.shared.targets import (
            balanced_class_weights,
            class_numbers,
            label_indicators,
            target_numbers,
        )

        if self.labels is not None:
            return [{"label": row} for row in label_indicators(data, split, self.labels, self._names(data))]
        if self.target is not None:
            return [{"label": number} for number in target_numbers(data, split, self.target)]
        names = self._names(data)
        found: list[dict[str, Any]] = [{"label": number} for number in class_numbers(data, split, names)]
        if self.class_weights == "balanced":
            weights = balanced_class_weights(data, split, names)
            found = [{**row, "class_weights": weights} for row in found]
        return found

    def with_text(self, feature: Feature, text: str) -> Feature:
        from tasks.objectives.text.inputs.texts import tokenized_pairs

        if self.pair is None:
            return super().with_text(feature, text)
        return {**feature, **tokenized_pairs([text], [feature["second"]], self.tokenizer, self.max_length)[0]}

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        """`labels`: int64 [B] classes, float32 [B, C] of 0 and 1, or float32 [B]; `class_weights`: float32 [C].

        Neither where the examples have no labels.
        """
        import numpy as np
        import torch

        from tasks.objectives.shared.padding import pad_token_ids

        input_ids, attention_mask = pad_token_ids([f["input_ids"] for f in features], self.special.pad)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        if "label" in features[0]:
            kind = np.int64 if self.problem == "single_label" else np.float32
            batch["labels"] = torch.from_numpy(np.array([f["label"] for f in features], kind))
        if self.pair is not None:
            batch["token_type_ids"] = pad_token_ids([f["token_type_ids"] for f in features], 0)[0]
        if "class_weights" in features[0]:
            batch["class_weights"] = torch.from_numpy(features[0]["class_weights"])
        return batch

    def units(self, batch: Batch) -> float:
        if "class_weights" in batch:
            return float(batch["class_weights"][batch["labels"]].double().sum())
        return len(batch["labels"] if "labels" in batch else batch["input_ids"])

    def scores(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The model's output -> float32 [B, C], or [B] for a number.

        mean: [B, T, C], averaged over each text's tokens, without padding. model: [B, C] as it is.
        """
        import torch

        found = logits.float()
        if self.pooling == "mean":
            weights = batch["attention_mask"].to(torch.float32).unsqueeze(-1)
            found = (found * weights).sum(1) / weights.sum(1).clamp(min=1.0)
        return found.squeeze(-1) if self.problem == "regression" else found

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[torch.Tensor, float]:
        import torch.nn.functional as F

        scores, labels = self.scores(outputs["logits"], batch), batch["labels"]
        if self.problem == "regression":
            return F.mse_loss(scores, labels, reduction="sum"), len(labels)
        if self.problem == "multi_label":
            loss = F.binary_cross_entropy_with_logits(scores, labels, reduction="none").mean(1).sum()
            return loss, len(labels)
        weights = batch.get("class_weights")
        loss = F.cross_entropy(scores, labels, weights, reduction="sum", label_smoothing=self.label_smoothing)
        return loss, self.units(batch)

    def teacher_targets(self, outputs: Outputs, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        scores = self.scores(outputs["logits"], batch)
        return scores, torch.ones(len(scores), dtype=torch.int64)

    def stored_distillation_loss(
        self, outputs: Outputs, targets: torch.Tensor | TopK, batch: Batch, temperature: float
    ) -> torch.Tensor:
        """`multi_label`: the mean of the labels' binary KL divergences; `regression`: the squared error.

        With class weights an example's KL counts as its truth does.
        """
        import torch.nn.functional as F

        from tasks.losses.distillation import distillation, two_way_distillation

        student = self.scores(outputs["logits"], batch)
        if self.problem == "single_label":
            weights = batch["class_weights"][batch["labels"]] if "class_weights" in batch else None
            return distillation(student, targets, temperature, weights)
        assert not isinstance(targets, tuple), "what is not truncatable is kept whole"
        if self.problem == "regression":
            return F.mse_loss(student, targets, reduction="sum")
        return two_way_distillation(student, targets, temperature) / student.shape[1]

    def predictions(self, outputs: Arrays, batch: Arrays) -> Predictions:
        """`labels`: the truth, int64 [B] or [B, C], float32 [B] for numbers; `logits`: float32 [B, C] or [B]."""
        import numpy as np
        import torch

        tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in batch.items()}
        scores = self.scores(torch.from_numpy(np.asarray(outputs["logits"])), tensors)
        kind = np.float32 if self.problem == "regression" else np.int64
        return {"labels": np.asarray(batch["labels"], kind), "logits": scores.numpy()}

    def choices(self, outputs: Arrays, batch: Arrays) -> npt.NDArray[np.integer] | None:
        """The class of each text, [B], or which labels it has, [B, C]."""
        import numpy as np

        scores = self.predictions(outputs, batch)["logits"]
        if self.problem == "regression":
            return None
        return (scores > 0).astype(np.int64) if self.problem == "multi_label" else scores.argmax(1)

    def metrics(self, predictions: Predictions, weights: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
        from tasks.metrics.classification import classification_metrics
        from tasks.metrics.multi_label import multi_label_metrics
        from tasks.metrics.regression import regression_metrics

        known: Any = {"multi_label": multi_label_metrics, "regression": regression_metrics}
        compute = known.get(self.problem, classification_metrics)
        found: dict[str, npt.NDArray[np.float64]] = compute(predictions["labels"], predictions["logits"], weights)
        return found

    def baselines(self, train: Sequence[Feature], heldout: Sequence[Feature]) -> dict[str, float]:
        """majority: always the commonest class of the training split (or the labels that most of it has).

        length: of a number, the correlation with the text's length, in the direction it has in the training split.
        """
        import numpy as np

        from tasks.metrics.regression import spearman
        from tasks.objectives.shared.targets import always_named

        truth = np.array([f["label"] for f in heldout])
        if self.problem == "regression":
            found = []
            for features in (train, heldout):
                lengths = np.array([self.length(f) for f in features], np.float64)
                numbers = np.array([f["label"] for f in features], np.float64)
                found.append(float(np.nan_to_num(spearman(numbers, lengths, np.ones((1, len(numbers))))[0])))
            return {"length": found[1] if found[0] >= 0 else -found[1]}
        if self.problem == "multi_label":
            counts = Counter({c: int(n) for c, n in enumerate(np.sum([f["label"] for f in train], axis=0))})
            logits = np.full(truth.shape, -1.0, np.float32)
            logits[:, list(always_named(counts, len(train)))] = 1.0
        else:
            classes = 1 + max(int(truth.max()), max(f["label"] for f in train))
            logits = np.zeros((len(truth), classes), np.float32)
            logits[:, int(np.bincount([f["label"] for f in train]).argmax())] = 1.0
        scores = self.metrics({"labels": truth.astype(np.int64), "logits": logits}, np.ones((1, len(truth))))
        return {"majority": float(scores[self.primary_metric][0])}

    def samples(self, model: PreTrainedModel, heldout: Sequence[Feature]) -> list[dict[str, str]]:
        """Eight heldout texts spread over the split: how each begins, the truth, and what the model says."""
        import torch

        from tasks.models.inputs import model_inputs

        tokenizer: Any = self.tokenizer
        chosen = [heldout[i] for i in spread(len(heldout), SHOWN)]
        batch = self.collate(chosen)
        with torch.no_grad():
            scores = self.scores(self.read(model(**model_inputs(batch, model)))["logits"], batch).numpy()
        names: Any = model.config.id2label
        # Two numbers are never the same, so that nobody may call one of them wrong.
        keys = ("target", "predicted") if self.problem == "regression" else ("truth", "prediction")
        return [
            {
                "text": tokenizer.decode(feature["input_ids"].tolist())[:240],
                keys[0]: self._as_text(feature["label"], names, truth=True),
                keys[1]: self._as_text(row, names),
            }
            for feature, row in zip(chosen, scores, strict=True)
        ]

    def _as_text(self, value: Any, names: Mapping[int, str], *, truth: bool = False) -> str:
        """A label or a score as people read it."""
        if self.problem == "regression":
            return f"{float(value):.3g}"
        if self.problem == "multi_label":
            return ", ".join(str(names[i]) for i in range(len(value)) if value[i] > 0) or "none"
        return str(names[int(value if truth else value.argmax())])


OBJECTIVE = TextClassification
