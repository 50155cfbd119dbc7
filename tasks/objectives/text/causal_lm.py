"""Causal language modelling: predict each token from those before it.

Reads packed `tokens` (rows of several documents, memory-mapped), the texts of a `dataset` (one example a text, cut to
`max_length`), or with `messages` its conversations, of which only the assistant's answers are learned (supervised
fine-tuning; `tasks/objectives/text/inputs/chat.py`). The unit of the loss is the predicted token; padding predicts
nothing and is predicted by nothing, nor is the first token of a document. Where a row holds several, `position_ids`
start at 0 with each, by which the model's attention separates them (`tasks/training/engine/engine.py` then leaves out
the mask).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from infra.errors import StageError
from tasks.data.reading.chat_template import check_chat_template
from tasks.objective import Arrays, Batch, Feature, Outputs, Predictions, spread
from tasks.objectives.shared.tokenized import TokenExamples, Tokenized
from tasks.stage import AddedLater

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from transformers import PreTrainedModel

    from tasks.objectives.shared.text_prompt import Prompt
    from tasks.stage import InputArtifact


class CausalLM(Tokenized):
    """See the module."""

    name: Literal["causal_lm"] = Field("causal_lm", description="Predict each token from those before it.")

    messages: str | None = Field(
        None,
        description="json column of conversations, lists of {role, content}; only answers are learned. None: texts.",
    )
    chat_template: str | None = Field(
        None, description="Jinja template that writes a conversation; it ships with the model. None: the tokenizer's."
    )
    end_of_text: Annotated[bool, AddedLater()] = Field(
        True,
        description="End each text or conversation with the tokenizer's end-of-text token, so that the model learns to "
        "stop. Left out where it was cut or already ends so; a `pack` stage ends its texts itself.",
    )

    data_types = ("tokens", "dataset")
    augmentation = "text"
    primary_metric = "cross_entropy"
    greater_is_better = False
    produces = "text"
    product_metrics = ("rougeL", "rouge1", "rouge2", "chrf", "bleu", "token_f1", "exact_match")

    @model_validator(mode="after")
    def _template_of_messages(self) -> CausalLM:
        if self.chat_template is not None and self.messages is None:
            raise ValueError("`chat_template` writes `messages`: name their column too")
        if self.chat_template is not None:
            check_chat_template(self.chat_template)
        return self

    @property
    def auto_class(self) -> str:
        return "AutoModelForCausalLM"

    def examples(self, data: InputArtifact, split: str, *, labelled: bool = True) -> Sequence[Feature]:
        from tasks.data.dataset.split import read_split
        from tasks.objectives.text.inputs.chat import chat_features
        from tasks.objectives.text.inputs.packed import packed_rows

        if self.messages is not None:
            if data.manifest.type != "dataset":
                raise StageError(
                    "`messages` are a column, and packed tokens have none", where=data.stage, hint="Name the dataset."
                )
            rows = chat_features(
                data, split, self.messages, self.chat_template, self.tokenizer, self.max_length, close=self.end_of_text
            )
            return TokenExamples(self, rows, why="conversations cannot be augmented", hint="Leave `augment` out.")
        if data.manifest.type == "dataset":
            texts = read_split(data, split, columns=("text",))["text"]
            return TokenExamples(self, self._measured(texts), texts)
        return TokenExamples(self, packed_rows(data, split, self.tokenizer, self.max_length))

    def _measured(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        from tasks.objectives.text.inputs.texts import measured_texts

        return measured_texts(texts, self.tokenizer, self.max_length, close=self.end_of_text)

    def with_text(self, feature: Feature, text: str) -> Feature:
        return self._measured([text])[0]

    def processor_files(self) -> dict[str, str]:
        return {} if self.chat_template is None else {"chat_template.jinja": self.chat_template}

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        import torch

        from tasks.losses.cross_entropy import IGNORED
        from tasks.objectives.shared.padding import pad_token_ids

        input_ids, attention_mask = pad_token_ids([f["input_ids"] for f in features], self.special.pad)
        labels = input_ids.masked_fill(attention_mask == 0, IGNORED)
        for row, feature in enumerate(features):
            if "labels" in feature:
                labels[row, : len(feature["labels"])] = torch.from_numpy(feature["labels"])
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        if all("bytes" in f for f in features):
            batch["bytes"] = torch.tensor([f["bytes"] for f in features], dtype=torch.int64)
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
        from tasks.losses.cross_entropy import IGNORED

        return int((batch["labels"][:, 1:] != IGNORED).sum())

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[torch.Tensor, int]:
        import torch.nn.functional as F

        from tasks.losses.cross_entropy import IGNORED, summed_cross_entropy

        # Shifting the labels and not the logits saves a copy of the largest tensor there is.
        targets = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
        return summed_cross_entropy(outputs["logits"].flatten(0, 1), targets.flatten()), int((targets != IGNORED).sum())

    def teacher_targets(self, outputs: Outputs, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        from tasks.losses.cross_entropy import IGNORED

        counted = batch["labels"][:, 1:] != IGNORED
        return outputs["logits"][:, :-1][counted], counted.sum(1)

    def predictions(self, outputs: Arrays, batch: Arrays) -> Predictions:
        """`nll`: float64 [B], summed negative log-likelihood in nats; `tokens`: int64 [B], how many it sums over.

        `bytes`: int64 [B], how many of the text those tokens stand for, where the examples are text.
        """
        import numpy as np
        import torch
        import torch.nn.functional as F

        from tasks.losses.cross_entropy import IGNORED

        targets = torch.from_numpy(np.ascontiguousarray(batch["labels"][:, 1:])).long()
        scores = torch.from_numpy(np.ascontiguousarray(outputs["logits"], dtype=np.float32))[:, :-1]
        nll = F.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
        return {
            "nll": nll.view(targets.shape).double().sum(1).numpy(),
            "tokens": (targets != IGNORED).sum(1).numpy(),
            **({"bytes": np.asarray(batch["bytes"], np.int64)} if "bytes" in batch else {}),
        }

    def choices(self, outputs: Arrays, batch: Arrays) -> npt.NDArray[np.integer]:
        """The likeliest token of each that is counted, [U]."""
        from tasks.metrics.tokens import likeliest

        return likeliest(outputs["logits"][:, :-1], batch["labels"][:, 1:])

    def metrics(self, predictions: Predictions, weights: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
        """Nats a token, its exponential, the same in bits; and bits a byte, which compares tokenizers too."""
        import numpy as np

        from tasks.metrics.ranking import ratio

        total, tokens = (weights @ predictions[name].astype(np.float64) for name in ("nll", "tokens"))
        nats = ratio(total, tokens, np.nan)
        found = {"cross_entropy": nats, "perplexity": np.exp(nats), "bits_per_token": nats / math.log(2)}
        if "bytes" in predictions:
            found["bits_per_byte"] = ratio(total, weights @ predictions["bytes"].astype(np.float64), np.nan) / math.log(
                2
            )
        return found

    def baselines(self, train: Sequence[Feature], heldout: Sequence[Feature]) -> dict[str, float]:
        """Nats a token of models that count: see `tasks/metrics/count_models.py`."""
        from tasks.metrics.count_models import count_model_losses

        return count_model_losses(*([pair for f in features for pair in _pairs(f)] for features in (train, heldout)))

    def requests(self, data: InputArtifact, split: str) -> Sequence[Prompt]:
        """Of `messages` the conversation up to the last answer, which is the reference; of a text its first half."""
        from tasks.objectives.text.inputs.chat_prompts import chat_prompts
        from tasks.objectives.text.inputs.prompts import continuations

        if self.messages is not None:
            return chat_prompts(data, split, self.messages, self.chat_template, self.tokenizer, self.max_length)
        return continuations(data, split, self.tokenizer, self.max_length)

    @property
    def reference_column(self) -> str | None:
        return self.messages

    def with_reference(self, value: Any, output: Any) -> Any:
        from tasks.objectives.text.inputs.chat_prompts import with_last_answer

        return with_last_answer(value, output.text)

    def samples(self, model: PreTrainedModel, heldout: Sequence[Feature]) -> list[dict[str, str]]:
        """Four heldout beginnings or questions, continued by sampling at temperature 0.8 among the 40 likeliest.

        Always the same.
        """
        import torch

        tokenizer: Any = self.tokenizer
        shown = []
        generate: Any = model.generate
        room = int(getattr(model.config, "max_position_embeddings", 0) or 256)
        for i in spread(len(heldout), 4):
            prompt = torch.from_numpy(_prompt(heldout[i], room))[None]
            # The seed is the example's place, so that a report changes only where the model did.
            torch.manual_seed(i)
            with torch.no_grad():
                output = generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    do_sample=True,
                    temperature=0.8,
                    top_k=40,
                    max_new_tokens=min(64, room - prompt.shape[1]),
                    pad_token_id=self.special.pad,
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


def _pairs(feature: Feature) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """(tokens, those that follow) of an example, where the second is to be predicted; never across documents."""
    from tasks.losses.cross_entropy import IGNORED

    if "labels" in feature:
        (row,), counted = _documents(feature), feature["labels"][1:] != IGNORED
        return [(row[:-1][counted], row[1:][counted])]
    return [(row[:-1], row[1:]) for row in _documents(feature)]


def _prompt(feature: Feature, room: int) -> npt.NDArray[np.int64]:
    """What a sample begins with: of a conversation all before the first answer, else the first tokens of a document."""
    from tasks.losses.cross_entropy import IGNORED

    row = _documents(feature)[0]
    if "labels" not in feature:
        return row[: min(32, max(1, len(row) // 2), room // 2)]
    counted = feature["labels"] != IGNORED
    first = int(counted.argmax()) if counted.any() else len(row) // 2
    return row[max(0, first - room // 2) : max(1, first)]


OBJECTIVE = CausalLM
