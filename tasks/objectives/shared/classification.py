"""What objectives share that name the classes of an example, any number of labels, or a number.

Classes are numbered in the order of dataset.json, several labels in that of their names, and the model carries the
names: data that a given model is judged on, or taught on, are numbered as it has them. The unit of the loss is the
example; with class weights an example counts its class's weight, so that the loss is torch's weighted mean. Of several
labels and of a number the loss is HF's: the mean of the binary cross-entropies, the squared error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from tasks.objective import Arrays, Batch, Feature, Objective, Outputs, Predictions, class_head

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from tasks.losses.top_k import TopK
    from tasks.stage import InputArtifact

PRIMARY = {"single_label": "f1_macro", "multi_label": "f1_micro", "regression": "spearman"}
MEANS: Mapping[str, Any] = {"single_label": "classes", "multi_label": "choices", "regression": "numbers"}


class Classification(Objective):
    """See the module. A subclass says what the examples are, and in `scores` what its model's output says of each."""

    problem: Literal["single_label", "multi_label", "regression"] = Field(
        "single_label", description="One of several classes, any number of labels, or a number."
    )
    labels: str | None = Field(None, description="For multi_label: json column with the list of each example's labels.")
    target: str | None = Field(None, description="For regression: column with each example's number.")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="`balanced`: a class counts n / (classes x its examples), from the training split."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the truth given to all classes evenly.")

    data_types = ("dataset",)
    greater_is_better = True

    @model_validator(mode="after")
    def _options_fit(self) -> Classification:
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
    def named_classes(self) -> bool:  # type: ignore[override]
        return self.problem != "regression"

    def class_names(self, data: InputArtifact) -> Sequence[str]:
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

    def head(self, data: InputArtifact) -> dict[str, Any]:
        return {"num_labels": 1} if self.target is not None else class_head(self.class_names(data))

    def truth(self, data: InputArtifact, split: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32] | None]:
        """(int64 [N] classes, int8 [N, C] of 0 and 1, or float64 [N]; class weights [C] where they are asked for)."""
        import numpy as np

        from tasks.objectives.shared.targets import (
            balanced_class_weights,
            class_numbers,
            label_indicators,
            target_numbers,
        )

        if self.labels is not None:
            return np.array(label_indicators(data, split, self.labels, self.class_names(data))), None
        if self.target is not None:
            return np.array(target_numbers(data, split, self.target), np.float64), None
        names = self.class_names(data)
        balanced = balanced_class_weights(data, split, names) if self.class_weights == "balanced" else None
        return np.array(class_numbers(data, split, names), np.int64), balanced

    def collated_truth(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        """`labels`: int64 [B] classes, float32 [B, C] of 0 and 1, or float32 [B]; `class_weights`: float32 [C].

        Neither where the examples have no labels.
        """
        import numpy as np
        import torch

        found = {}
        if "label" in features[0]:
            kind = np.int64 if self.problem == "single_label" else np.float32
            found["labels"] = torch.from_numpy(np.array([f["label"] for f in features], kind))
        if features[0].get("class_weights") is not None:
            found["class_weights"] = torch.from_numpy(features[0]["class_weights"])
        return found

    def units(self, batch: Batch) -> float:
        if "class_weights" in batch:
            return float(batch["class_weights"][batch["labels"]].double().sum())
        return len(batch["labels"]) if "labels" in batch else self.rows(batch)

    def scores(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The model's output -> float32 [B, C], or [B] for a number. Here: of [B, C]."""
        found = logits.float()
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
        """The class of each example, [B], or which labels it has, [B, C]."""
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

        constant: of a number any one value, which has no correlation with the truth.
        """
        import numpy as np

        from tasks.objectives.shared.targets import always_named

        if self.problem == "regression":
            return {"constant": 0.0}
        seen, truth = labels_of(train), labels_of(heldout)
        if self.problem == "multi_label":
            counts = Counter({c: int(n) for c, n in enumerate(seen.sum(axis=0))})
            logits = np.full(truth.shape, -1.0, np.float32)
            logits[:, list(always_named(counts, len(seen)))] = 1.0
        else:
            logits = np.zeros((len(truth), 1 + max(int(truth.max()), int(seen.max()))), np.float32)
            logits[:, int(np.bincount(seen).argmax())] = 1.0
        scores = self.metrics({"labels": truth.astype(np.int64), "logits": logits}, np.ones((1, len(truth))))
        return {"majority": float(scores[self.primary_metric][0])}

    def shown_answers(self, features: Sequence[Feature], scores: npt.NDArray[Any], names: Any) -> list[dict[str, str]]:
        """Truth and prediction of some examples, as people read them; names: the classes by their numbers."""
        # Two numbers are never the same, so that nobody may call one of them wrong.
        keys = ("target", "predicted") if self.problem == "regression" else ("truth", "prediction")
        return [
            {keys[0]: self._as_text(feature["label"], names, truth=True), keys[1]: self._as_text(row, names)}
            for feature, row in zip(features, scores, strict=True)
        ]

    def _as_text(self, value: Any, names: Mapping[int, str], *, truth: bool = False) -> str:
        """A label or a score as people read it."""
        if self.problem == "regression":
            return f"{float(value):.3g}"
        if self.problem == "multi_label":
            return ", ".join(str(names[i]) for i in range(len(value)) if value[i] > 0) or "none"
        return str(names[int(value if truth else value.argmax())])


def labels_of(examples: Sequence[Feature]) -> npt.NDArray[Any]:
    """The labels of examples, none of which is made for it where they are kept apart (`Examples.truth`)."""
    import numpy as np

    kept = getattr(examples, "truth", {}).get("label")
    return np.array([feature["label"] for feature in examples]) if kept is None else np.asarray(kept)
