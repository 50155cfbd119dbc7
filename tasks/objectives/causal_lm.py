"""Causal language modelling: predict each token from those before it.

Reads packed `tokens` (rows of several documents, memory-mapped) or the texts of a `dataset` (one example a text, cut to
`max_length`). The unit of the loss is the predicted token; padding predicts nothing and is predicted by nothing, nor is
the first token of a document. Where a row holds several, `position_ids` begin anew with each, by which the model's
attention tells them apart (`tasks/training/engine.py` then leaves out the mask).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tasks.objectives import Batch, Feature, Objective, Predictions, SpecialIds

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from tasks.stage import InputArtifact


class CausalLM(Objective):
    """See the module."""

    name: Literal["causal_lm"] = Field("causal_lm", description="Predict each token from those before it.")

    data_types = ("tokens", "dataset")
    primary_metric = "cross_entropy"
    greater_is_better = False

    @property
    def auto_class(self) -> str:
        return "AutoModelForCausalLM"

    def features(
        self, data: InputArtifact, split: str, tokenizer: PreTrainedTokenizerFast | None, max_length: int
    ) -> Sequence[Feature]:
        from tasks.training.packed import packed_rows
        from tasks.training.text_features import read_split, tokenized

        if data.manifest.type == "dataset":
            table = read_split(data, split, columns=("text",))
            return [{"input_ids": ids} for ids in tokenized(table["text"], tokenizer, max_length)]
        return packed_rows(data, split, max_length)

    def collate(self, features: Sequence[Feature], special: SpecialIds) -> dict[str, torch.Tensor]:
        import torch

        from tasks.training.cross_entropy import IGNORED
        from tasks.training.text_features import pad_token_ids

        input_ids, attention_mask = pad_token_ids([f["input_ids"] for f in features], special.pad)
        labels = input_ids.masked_fill(attention_mask == 0, IGNORED)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        if not any(len(f.get("segments", ())) > 1 for f in features):
            return batch
        positions = torch.zeros_like(input_ids)
        for row, feature in enumerate(features):
            begin = 0
            for length in feature["segments"].tolist():
                positions[row, begin : begin + length] = torch.arange(length)
                labels[row, begin] = IGNORED  # nothing before it in its document foretells it
                begin += length
        return {**batch, "position_ids": positions}

    def units(self, batch: Batch) -> int:
        from tasks.training.cross_entropy import IGNORED

        return int((batch["labels"][:, 1:] != IGNORED).sum())

    def loss(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, int]:
        import torch.nn.functional as F

        from tasks.training.cross_entropy import IGNORED, summed_cross_entropy

        # Shifting the labels and not the logits saves a copy of the largest tensor there is.
        targets = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
        return summed_cross_entropy(logits.flatten(0, 1), targets.flatten()), int((targets != IGNORED).sum())

    def soft_loss(
        self, logits: torch.Tensor, teacher_logits: torch.Tensor, batch: Batch, temperature: float
    ) -> torch.Tensor:
        from tasks.compression.distill import distillation
        from tasks.training.cross_entropy import IGNORED

        counted = batch["labels"][:, 1:] != IGNORED
        return distillation(logits[:, :-1][counted], teacher_logits[:, :-1][counted], temperature)

    def predictions(self, logits: npt.NDArray[Any], batch: Mapping[str, npt.NDArray[Any]]) -> Predictions:
        """`nll`: float64 [B], summed negative log-likelihood in nats; `tokens`: int64 [B], how many it sums over."""
        import numpy as np
        import torch
        import torch.nn.functional as F

        from tasks.training.cross_entropy import IGNORED

        targets = torch.from_numpy(np.ascontiguousarray(batch["labels"][:, 1:])).long()
        scores = torch.from_numpy(np.ascontiguousarray(logits, dtype=np.float32))[:, :-1]
        nll = F.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
        return {
            "nll": nll.view(targets.shape).double().sum(1).numpy(),
            "tokens": (targets != IGNORED).sum(1).numpy(),
        }

    def metrics(self, predictions: Predictions, weights: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
        """Nats a token, its exponential, and the same in bits."""
        import numpy as np

        nats = (weights @ predictions["nll"]) / (weights @ predictions["tokens"].astype(np.float64))
        return {"cross_entropy": nats, "perplexity": np.exp(nats), "bits_per_token": nats / math.log(2)}

    def baselines(self, train: Sequence[Feature], heldout: Sequence[Feature]) -> dict[str, float]:
        """Nats a token of count models on the heldout tokens, each at the smoothing that suits it best *there*.

        unigram: add-half counts. bigram: absolute discounting, interpolated with the Kneser-Ney continuation
        distribution or with the unigram (Ney, Essen and Kneser, 1994), whichever is lower. Choosing on the heldout
        data flatters the baselines, so beating them means something.
        """
        import numpy as np

        rows, targets = ([part for f in features for part in _documents(f)] for features in (train, heldout))
        size = 1 + max(int(row.max()) for row in [*rows, *targets] if len(row))
        counts = np.bincount(np.concatenate([row[1:] for row in rows]), minlength=size) + 0.5
        unigram = counts / counts.sum()
        seen, seen_count = np.unique(np.concatenate([row[:-1] * size + row[1:] for row in rows]), return_counts=True)
        wanted = np.concatenate([row[:-1] * size + row[1:] for row in targets])
        before, after = wanted // size, wanted % size
        place = np.minimum(np.searchsorted(seen, wanted), len(seen) - 1)
        pair = np.where(seen[place] == wanted, seen_count[place], 0)
        total = np.bincount(seen // size, weights=seen_count, minlength=size)[before]
        kinds = np.bincount(seen // size, minlength=size)[before]
        continuation = np.bincount(seen % size, minlength=size) + 0.5
        continuation /= continuation.sum()
        bigram = math.inf
        for discount in (0.5, 0.6, 0.7, 0.8, 0.9):
            left = np.where(total > 0, discount * kinds / np.maximum(total, 1), 1.0)
            direct = np.maximum(pair - discount, 0) / np.maximum(total, 1)
            for lower in (continuation, unigram):
                bigram = min(bigram, float(-np.log(direct + left * lower[after]).mean()))
        return {"unigram": float(-np.log(unigram[after]).mean()), "bigram": bigram}

    def samples(self, model: PreTrainedModel, tokenizer: Any, heldout: Sequence[Feature]) -> list[dict[str, str]]:
        """Four heldout beginnings, continued by sampling at temperature 0.8 among the 40 likeliest; always the same."""
        import numpy as np
        import torch

        shown = []
        generate: Any = model.generate
        room = int(getattr(model.config, "max_position_embeddings", 0) or 256)
        for i in np.linspace(0, len(heldout) - 1, min(4, len(heldout))).astype(int):
            row = _documents(heldout[int(i)])[0]
            prompt = torch.from_numpy(row[: min(32, max(1, len(row) // 2), room // 2)])[None]
            # The seed is the example's place, so that a report changes only where the model did.
            torch.manual_seed(int(i))
            with torch.no_grad():
                output = generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    do_sample=True,
                    temperature=0.8,
                    top_k=40,
                    max_new_tokens=min(64, room - prompt.shape[1]),
                    pad_token_id=model.config.pad_token_id or 0,
                )
            shown.append(
                {
                    "prompt": tokenizer.decode(prompt[0].tolist()),
                    "continuation": tokenizer.decode(output[0, prompt.shape[1] :].tolist()),
                }
            )
        return shown


def _documents(feature: Feature) -> list[npt.NDArray[np.int64]]:
    """The documents of a row, each by itself."""
    import numpy as np

    ids = np.asarray(feature["input_ids"], np.int64)
    return np.split(ids, np.cumsum(feature["segments"])[:-1]) if "segments" in feature else [ids]


OBJECTIVE = CausalLM
