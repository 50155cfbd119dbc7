"""Masked language modelling: predict hidden tokens from both sides (Devlin et al., 2019; BERT, RoBERTa, ERNIE).

Reads packed `tokens` or the texts of a `dataset` (one example a text, cut to `max_length`). Documents that share a
packed row see each other across the end-of-text token between them, as in the FULL-SENTENCES setting of RoBERTa (Liu
et al., 2019). What is hidden is drawn again each time an example comes (dynamic masking, likewise RoBERTa's), and once
in a held-out split. The unit of the loss is the hidden token.

Cross entropy and perplexity here are of hidden tokens given the rest: they compare models with one tokenizer and one
`mask_share`, and are no likelihood of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from infra.errors import StageError
from tasks.objective import Arrays, Batch, Feature, Outputs, Predictions, spread
from tasks.objectives.shared.token_labels import TokenLabels
from tasks.objectives.shared.tokenized import TokenExamples
from tasks.objectives.text.inputs.own_text import OwnText

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from transformers import PreTrainedModel

    from tasks.stage import InputArtifact

SHOWN = 4
SHOWN_TOKENS = 64


class MaskedLM(TokenLabels, OwnText):
    """See the module."""

    name: Literal["masked_lm"] = Field("masked_lm", description="Predict masked tokens from the tokens on both sides.")
    mask_share: float = Field(0.15, gt=0, lt=1, description="Share of an example's tokens that are to be predicted.")
    mask_replace: float = Field(0.8, ge=0, le=1, description="Share of these that are replaced by the mask token.")
    random_replace: float = Field(
        0.1, ge=0, le=1, description="Share of these that are replaced by any token; what is left stays as it is."
    )
    whole_words: bool = Field(False, description="Hide all tokens of a word together.")

    data_types = ("tokens", "dataset")
    primary_metric = "cross_entropy"
    greater_is_better = False

    @model_validator(mode="after")
    def _shares(self) -> MaskedLM:
        if self.mask_replace + self.random_replace > 1:
            raise ValueError("mask_replace and random_replace are shares of the same tokens: together at most 1")
        return self

    @property
    def auto_class(self) -> str:
        return "AutoModelForMaskedLM"

    def examples(self, data: InputArtifact, split: str, *, labelled: bool = True) -> Sequence[Feature]:
        from tasks.data.dataset.split import read_split
        from tasks.objectives.text.inputs.packed import packed_rows, tokenizer_of
        from tasks.objectives.text.inputs.texts import tokenized
        from tasks.objectives.text.inputs.vocabulary import Vocabulary

        tokenizer = tokenizer_of(data, self.tokenizer)
        vocabulary = Vocabulary.of(tokenizer, whole_words=self.whole_words)
        if vocabulary.mask is None:
            raise StageError(
                "the tokenizer has no mask token",
                where=data.stage,
                hint="Set `mask_token: true` in the `tokenizer` stage, or `mask_token` in the tokenizer_config.json of "
                "a given one.",
            )
        if data.manifest.type != "dataset":
            return TokenExamples(self, packed_rows(data, split, tokenizer, self.max_length), vocabulary=vocabulary)
        texts = read_split(data, split, columns=("text",))["text"]
        rows = tokenized(texts, tokenizer, self.max_length)
        bare = [i for i, row in enumerate(rows) if vocabulary.special[row].all()]
        if bare:
            raise StageError(
                f"{len(bare)} of {len(rows)} texts of split {split!r} hold no token that could be hidden, the first "
                f"being row {bare[0]}: {texts[bare[0]][:40]!r}",
                where=data.stage,
                hint="Leave empty texts, and texts that the tokenizer does not know at all, out of the dataset.",
            )
        return TokenExamples(self, [{"input_ids": row} for row in rows], texts, vocabulary=vocabulary)

    def noised(self, feature: Feature, seed: int) -> Feature:
        """`labels` [T]: the hidden tokens' ids, -100 elsewhere."""
        import numpy as np

        from tasks.objectives.text.inputs.masking import masked

        read, labels = masked(
            feature["input_ids"],
            feature["vocabulary"],
            np.random.default_rng(seed),
            share=self.mask_share,
            mask_replace=self.mask_replace,
            random_replace=self.random_replace,
        )
        return {"input_ids": read, "labels": labels, "vocabulary": feature["vocabulary"]}

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        from tasks.losses.cross_entropy import IGNORED
        from tasks.objectives.shared.padding import pad_token_ids

        input_ids, attention_mask = pad_token_ids([f["input_ids"] for f in features], self.special.pad)
        labels, _ = pad_token_ids([f["labels"] for f in features], IGNORED)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[torch.Tensor, int]:
        from tasks.losses.cross_entropy import IGNORED, summed_cross_entropy

        counted = batch["labels"] != IGNORED
        return summed_cross_entropy(outputs["logits"][counted], batch["labels"][counted]), int(counted.sum())

    def predictions(self, outputs: Arrays, batch: Arrays) -> Predictions:
        """See `token_scores`."""
        from tasks.metrics.tokens import token_scores

        return token_scores(outputs["logits"], batch["labels"])

    def choices(self, outputs: Arrays, batch: Arrays) -> npt.NDArray[np.integer]:
        """The likeliest token of each that is hidden, [U]."""
        from tasks.metrics.tokens import likeliest

        return likeliest(outputs["logits"], batch["labels"])

    def metrics(self, predictions: Predictions, weights: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
        """Nats a hidden token, its exponential, and the share of hidden tokens predicted right."""
        from tasks.metrics.tokens import token_metrics

        return token_metrics(predictions, weights)

    def baselines(self, train: Sequence[Feature], heldout: Sequence[Feature]) -> dict[str, float]:
        """Nats a hidden token of the training tokens' frequencies, without special tokens."""
        import numpy as np

        from tasks.losses.cross_entropy import IGNORED
        from tasks.metrics.tokens import unigram_nats

        seen = np.concatenate([np.asarray(f["input_ids"], np.int64) for f in train])
        hidden = np.concatenate([f["labels"] for f in heldout])
        return {"unigram": unigram_nats(seen[~train[0]["vocabulary"].special[seen]], hidden[hidden != IGNORED])}

    def samples(self, model: PreTrainedModel, heldout: Sequence[Feature]) -> list[dict[str, str]]:
        """Four heldout texts spread over the split: how each begins, with its masks; the hidden tokens; the guesses."""
        import numpy as np
        import torch

        from tasks.losses.cross_entropy import IGNORED

        tokenizer: Any = self.tokenizer
        chosen = [heldout[i] for i in spread(len(heldout), SHOWN)]
        batch = self.collate(chosen)
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        shown = []
        for feature, guess in zip(chosen, logits.argmax(-1).numpy(), strict=True):
            hidden = np.flatnonzero(feature["labels"][:SHOWN_TOKENS] != IGNORED)
            shown.append(
                {
                    "text": tokenizer.decode(feature["input_ids"][:SHOWN_TOKENS].tolist()),
                    "truth": _as_text(tokenizer, feature["labels"][hidden]),
                    "prediction": _as_text(tokenizer, guess[hidden]),
                }
            )
        return shown


def _as_text(tokenizer: Any, ids: npt.NDArray[np.int64]) -> str:
    return " | ".join(tokenizer.decode([number]).strip() for number in ids.tolist())


OBJECTIVE = MaskedLM
