"""Token classification: one label a word, as for names in a text (NER) or parts of speech.

Reads a `dataset` whose rows have `json` columns of words and of their tags. The model labels word pieces; a word's
answer is that of its first piece, and only that piece is learned from unless `label_all_pieces`. The classes are the
tags of the training split, `O` first, then sorted; the model carries their names. The unit of the loss is the labelled
piece. A word that `max_length` cuts off counts as answered with `O` (as wrong where there is no `O`), so nothing is
gained by cutting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from infra.errors import StageError
from tasks.objective import Arrays, Batch, Feature, Outputs, Predictions, class_head, spread
from tasks.objectives.shared.token_labels import TokenLabels
from tasks.objectives.shared.tokenized import TokenExamples, Tokenized

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from transformers import PreTrainedModel

    from tasks.stage import InputArtifact

SHOWN = 8


class TokenClassification(TokenLabels, Tokenized):
    """See the module."""

    name: Literal["token_classification"] = Field("token_classification", description="One label per word.")
    words: str = Field("words", min_length=1, description="The column of words, a list of strings each.")
    tags: str = Field("tags", min_length=1, description="The column of their tags, as many as there are words.")
    scheme: Literal["bio", "none"] = Field(
        "bio", description="`bio`: tags `B-<type>`, `I-<type>` and `O` spell spans. `none`: each stands for itself."
    )
    label_all_pieces: bool = Field(
        False, description="Learn from every piece of a word (after `B-` they are `I-`), not from its first alone."
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="`balanced`: a tag weighs in the loss as much less as training words have it more often."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of a label spread evenly over all classes.")

    data_types = ("dataset",)
    greater_is_better = True
    named_classes = True

    @property
    def primary_metric(self) -> str:  # type: ignore[override]  # a property where an option decides it
        return "span_f1" if self.scheme == "bio" else "f1_macro"

    @property
    def auto_class(self) -> str:
        return "AutoModelForTokenClassification"

    def head(self, data: InputArtifact) -> dict[str, Any]:
        labels = self._labels or self._of(self._counts(data), data)
        return class_head(labels)

    def _counts(self, data: InputArtifact) -> Counter[str]:
        """How many words of the training split have each tag."""
        from tasks.objectives.text.inputs.tagged_words import read_tagged

        return Counter(
            tag for row in read_tagged(data, data.split or "train", self.words, self.tags) for tag in row.tags
        )

    def _of(self, counts: Mapping[str, int], data: InputArtifact) -> tuple[str, ...]:
        """The classes for these tags. Raises StageError if they are not of the scheme, or under two."""
        from tasks.metrics.tagging import OUTSIDE, is_bio

        for tag in sorted(counts) if self.scheme == "bio" else ():
            if not is_bio(tag):
                raise StageError(
                    f"tag {tag!r} spells no span",
                    where=data.stage,
                    hint="With `scheme: bio` tags are O, B-<type> or I-<type>; `scheme: none` is for plain tags.",
                )
        if len(counts) < 2:
            raise StageError(
                f"all words have the tag {next(iter(counts))!r}",
                where=data.stage,
                hint="A classifier needs at least two labels.",
            )
        return tuple(sorted(counts, key=lambda tag: (tag != OUTSIDE, tag)))

    def examples(self, data: InputArtifact, split: str, *, labelled: bool = True) -> Sequence[Feature]:
        import numpy as np

        from tasks.data.dataset.layout import has_split
        from tasks.metrics.tagging import continuations
        from tasks.objectives.text.inputs.tagged_words import labelled as with_labels
        from tasks.objectives.text.inputs.tagged_words import read_tagged, word_pieces

        # The weights are of the training split, which data that a model is only judged on may lack: no loss there.
        weighs = self.class_weights == "balanced" and has_split(data.path, "dataset", data.split or "train")
        counts = self._counts(data) if weighs or not self._labels else Counter[str]()
        labels = self._labels or self._of(counts, data)
        extra = {}
        if weighs:
            seen = np.array([max(counts[label], 1) for label in labels], np.float32)
            extra["class_weights"] = seen.sum() / (len(seen) * seen)  # as scikit-learn's "balanced"
        rows = read_tagged(data, split, self.words, self.tags)
        pieces = word_pieces([row.words for row in rows], self.tokenizer, self.max_length)
        continued = continuations(labels) if self.scheme == "bio" else list(range(len(labels)))
        later = continued if self.label_all_pieces else None
        where = (data.stage, split)
        found = [
            {**with_labels(row, cut, labels, later, where=where), **extra}
            for row, cut in zip(rows, pieces, strict=True)
        ]
        return TokenExamples(self, found)

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        """`labels` [B, T]: of pieces, -100 where none is learned. `starts`, `tags` [B, W]: of words, -1 where none."""
        import torch

        from tasks.losses.cross_entropy import IGNORED
        from tasks.objectives.shared.padding import pad_token_ids
        from tasks.objectives.text.inputs.tagged_words import padded

        input_ids, attention_mask = pad_token_ids([f["input_ids"] for f in features], self.special.pad)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        for name, nothing in (("labels", IGNORED), ("starts", -1), ("tags", -1)):
            batch[name] = torch.from_numpy(padded([f[name] for f in features], nothing))
        if "class_weights" in features[0]:
            batch["class_weights"] = torch.from_numpy(features[0]["class_weights"])
        return batch

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[torch.Tensor, int]:
        """Summed over labelled pieces; class weights change no units: their mean over the training words is 1."""
        import torch.nn.functional as F

        from tasks.losses.cross_entropy import IGNORED

        total = F.cross_entropy(
            outputs["logits"].flatten(0, 1).float(),
            batch["labels"].flatten(),
            weight=batch.get("class_weights"),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        return total, self.units(batch)

    def answers(self, logits: npt.NDArray[Any], starts: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Classes of words [B, W], by the logits [B, T, C] of their first pieces; `O`, or else -1, without one."""
        import numpy as np

        first = np.take_along_axis(np.asarray(logits), np.maximum(starts, 0)[..., None].astype(np.int64), axis=1)
        outside = self._labels.index("O") if "O" in self._labels else -1
        return np.where(starts >= 0, first.argmax(-1), outside).astype(np.int64)

    def predictions(self, outputs: Arrays, batch: Arrays) -> Predictions:
        """Counts of each example, int64: `words`, `correct` [B]; `true`, `guessed`, `right` [B, types or tags]."""
        return self._counted(batch["tags"], self.answers(outputs["logits"], batch["starts"]))

    def choices(self, outputs: Arrays, batch: Arrays) -> npt.NDArray[np.integer]:
        """The class of each word, [U]."""
        return self.answers(outputs["logits"], batch["starts"])[batch["starts"] >= 0]

    def _counted(self, truth: npt.NDArray[np.int64], guesses: npt.NDArray[np.int64]) -> Predictions:
        import numpy as np

        from tasks.metrics.tagging import span_counts, tag_counts, word_counts

        guesses = np.where(truth >= 0, guesses, -1)
        if self.scheme == "bio":
            return {**word_counts(truth, guesses), **span_counts(truth, guesses, self._labels)}
        return {**word_counts(truth, guesses), **tag_counts(truth, guesses, len(self._labels))}

    def metrics(self, predictions: Predictions, weights: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
        from tasks.metrics.tagging import span_types, tagging_metrics

        if self.scheme == "bio":
            return tagging_metrics(predictions, span_types(self._labels), weights, "span_")
        return tagging_metrics(predictions, self._labels, weights, "")

    def baselines(self, train: Sequence[Feature], heldout: Sequence[Feature]) -> dict[str, float]:
        """`majority`: every word has the commonest tag. `unigram`: a word has the tag it mostly had in training."""
        import numpy as np

        from tasks.objectives.text.inputs.tagged_words import padded

        seen: dict[str, Counter[int]] = {}
        for feature in train:
            for word, tag in zip(feature["words"], feature["tags"].tolist(), strict=True):
                seen.setdefault(word, Counter())[tag] += 1
        total = sum(seen.values(), Counter[int]())
        commonest = _commonest(total)
        known = {word: _commonest(counts) for word, counts in seen.items()}
        truth = padded([f["tags"] for f in heldout], -1)
        guesses = [np.array([known.get(word, commonest) for word in f["words"]], np.int64) for f in heldout]
        values = {"majority": np.full_like(truth, commonest), "unigram": padded(guesses, -1)}
        ones = np.ones((1, len(heldout)))
        return {
            name: float(self.metrics(self._counted(truth, guess), ones)[self.primary_metric][0])
            for name, guess in values.items()
        }

    def samples(self, model: PreTrainedModel, heldout: Sequence[Feature]) -> list[dict[str, str]]:
        """Eight heldout texts spread over the split: the words, and how they are tagged in truth and by the model."""
        import torch

        from tasks.metrics.tagging import marked
        from tasks.models.inputs import model_inputs

        def as_text(feature: Feature, tags: Sequence[int]) -> str:
            return marked(feature["words"], tags, self._labels, bio=self.scheme == "bio")

        chosen = [heldout[i] for i in spread(len(heldout), SHOWN)]
        batch = self.collate(chosen)
        with torch.no_grad():
            logits = self.read(model(**model_inputs(batch, model)))["logits"]
        guesses = self.answers(logits.float().numpy(), batch["starts"].numpy())
        return [
            {
                "text": " ".join(feature["words"]),
                "truth": as_text(feature, feature["tags"]),
                "prediction": as_text(feature, guess[: len(feature["words"])]),
            }
            for feature, guess in zip(chosen, guesses, strict=True)
        ]


def _commonest(counts: Mapping[int, int]) -> int:
    return min(counts, key=lambda tag: (-counts[tag], tag))


OBJECTIVE = TokenClassification
