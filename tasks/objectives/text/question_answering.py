"""Extractive question answering: the span of a text that answers a question, or that there is none.

Reads a `dataset` whose `text` holds the answers to a `question` (a string column) as SQuAD spells them (a `json`
column: {"text": [...], "answer_start": [...]}, empty lists where the text does not answer). A long text is read in
windows that overlap by `stride`. An example is a question with all its windows: a batch of B questions has W >= B rows.
The model scores every token as the first and as the last of the answer. A window that does not hold the whole answer
points to its null token twice: [CLS], or where the tokenizer has none the first token. (A decoder sees nothing at its
first token, so there "no answer" has one score for all texts; use an encoder where it matters.) The unit of the loss
is the window. Unlike HF's own loss, padding is no candidate, so a window's loss does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tasks.objective import Arrays, Batch, Feature, Outputs, Port, Predictions, spread
from tasks.objectives.shared.tokenized import TOKENS, TokenExamples, Tokenized

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from transformers import PreTrainedModel

    from tasks.stage import InputArtifact

SHOWN = 8
IMPOSSIBLE = -1e9
"""Score of padding: finite, so that a soft loss of two such scores is zero and not undefined."""


class QuestionAnswering(Tokenized):
    """See the module."""

    name: Literal["question_answering"] = Field("question_answering", description="The span of a text that answers.")
    question: str = Field("question", min_length=1, description="The column of questions.")
    answers: str = Field("answers", min_length=1, description="The column of answers, as SQuAD spells them.")
    stride: int = Field(
        128, ge=0, description="Tokens that neighbouring windows share; at most half of a window's text."
    )
    max_answer_length: int = Field(30, ge=1, description="Longest answer in tokens.")
    null_threshold: float | None = Field(
        0.0, description="How far the score of no answer must lie above the best span's. None: always answer."
    )

    data_types = ("dataset",)
    primary_metric = "f1"
    greater_is_better = True

    @property
    def auto_class(self) -> str:
        return "AutoModelForQuestionAnswering"

    @property
    def inputs(self) -> Mapping[str, Port]:
        return {**super().inputs, "token_type_ids": Port("int64", TOKENS, mask="attention_mask")}

    def head(self, data: InputArtifact) -> dict[str, Any]:
        return {"num_labels": 2}

    def examples(self, data: InputArtifact, split: str, *, labelled: bool = True) -> Sequence[Feature]:
        import numpy as np

        from tasks.objectives.text.inputs.question_windows import read_asked, target, windows

        rows = read_asked(data, split, self.question, self.answers)
        found = []
        for row, cut in zip(rows, windows(rows, self.tokenizer, self.max_length, self.stride, data.stage), strict=True):
            mark = self.tokenizer.cls_token_id if self.tokenizer is not None else None
            null = [int(np.argmax(ids == mark)) if mark is not None else 0 for ids in cut.input_ids]
            targets = [target(c, row.answers, n) for c, n in zip(cut.characters, null, strict=True)]
            found.append(
                {
                    "input_ids": cut.input_ids,
                    "token_types": cut.token_types,
                    "characters": cut.characters,
                    "null": null,
                    "labels": targets,
                    "question": row.question,
                    "context": row.context,
                    "answers": [text for text, _ in row.answers],
                }
            )
        return TokenExamples(self, found)

    def length(self, feature: Feature) -> int:
        """Of all windows: a text that fills several has whole windows, and others like it fit beside it."""
        return sum(len(ids) for ids in feature["input_ids"])

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        """Rows are windows [W, T]. `labels` [W, 2]: the answer's first and last token; `null` [W]: what none points to.

        `questions` [W]: the question of each window, in order. `characters` [W, T, 2]: of tokens in the text, -1: none.
        For predictions, as code points filled up with -1: `context` [B, L] and `answers` [B, most answers, longest].
        """
        import numpy as np
        import torch

        from tasks.objectives.shared.padding import pad_token_ids
        from tasks.objectives.text.inputs.question_windows import code_points

        rows = [row for f in features for row in zip(f["input_ids"], f["token_types"], f["characters"], strict=True)]
        input_ids, attention_mask = pad_token_ids([ids for ids, _, _ in rows], self.special.pad)
        types = np.zeros(input_ids.shape, np.int64)
        characters = np.full((*input_ids.shape, 2), -1, np.int64)
        for i, (ids, kinds, places) in enumerate(rows):
            types[i, : len(ids)], characters[i, : len(ids)] = kinds, places
        most = max(1, *(len(f["answers"]) for f in features)) if features else 1
        spelled = code_points([a for f in features for a in (*f["answers"], *[""] * (most - len(f["answers"])))])
        arrays = {
            "token_type_ids": types,
            "labels": np.array([pair for f in features for pair in f["labels"]], np.int64),
            "null": np.array([n for f in features for n in f["null"]], np.int64),
            "questions": np.repeat(np.arange(len(features)), [len(f["input_ids"]) for f in features]),
            "characters": characters,
            "context": code_points([f["context"] for f in features]),
            "answers": spelled.reshape(len(features), most, -1),
        }
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return {"input_ids": input_ids, "attention_mask": attention_mask, **tensors}

    def read(self, output: Any) -> Outputs:
        """`logits` [W, T, 2]: how well each token begins the answer, and how well it ends it."""
        import torch

        return {"logits": torch.stack([output.start_logits, output.end_logits], dim=-1)}

    def _scores(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """float32 [2W, T]: of first and last token, window by window; padding is impossible."""
        padding = batch["attention_mask"].unsqueeze(1) == 0
        return logits.float().transpose(1, 2).masked_fill(padding, IMPOSSIBLE).flatten(0, 1)

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[torch.Tensor, int]:
        """Summed over windows: the mean of the cross entropies of first and last token (Devlin et al., 2019)."""
        import torch.nn.functional as F

        total = F.cross_entropy(self._scores(outputs["logits"], batch), batch["labels"].flatten(), reduction="sum") / 2
        return total, len(batch["labels"])

    def distillation_loss(
        self, outputs: Outputs, teacher_outputs: Outputs, batch: Batch, temperature: float
    ) -> torch.Tensor:
        from tasks.losses.distillation import distillation

        return (
            distillation(
                self._scores(outputs["logits"], batch), self._scores(teacher_outputs["logits"], batch), temperature
            )
            / 2
        )

    def predictions(self, outputs: Arrays, batch: Arrays) -> Predictions:
        """One row a question. `begin`, `end`: int64 [B], characters of the answer, -1 for none; `null_score`: float64
        [B], of no answer over the best span; `exact_match`, `f1`: float64 [B]; `answerable`: bool [B]."""
        import numpy as np

        from tasks.metrics.squad import best, exact_match, token_f1
        from tasks.objectives.text.inputs.question_windows import spelled

        begin, end, null_score = self.best_spans(outputs["logits"], batch)
        contexts = [spelled(row) for row in batch["context"]]
        answers = [[text for row in rows if (text := spelled(row))] for rows in batch["answers"]]
        said = [context[b:e] if b >= 0 else "" for context, b, e in zip(contexts, begin, end, strict=True)]
        return {
            "begin": begin,
            "end": end,
            "null_score": null_score,
            "exact_match": np.array([best(exact_match, *pair) for pair in zip(said, answers, strict=True)]),
            "f1": np.array([best(token_f1, *pair) for pair in zip(said, answers, strict=True)]),
            "answerable": np.array([bool(references) for references in answers]),
        }

    def choices(self, outputs: Arrays, batch: Arrays) -> npt.NDArray[np.integer]:
        """Where each question's answer begins and ends, [B, 2]."""
        import numpy as np

        return np.stack(self.best_spans(outputs["logits"], batch)[:2], axis=1)

    def best_spans(
        self, logits: npt.NDArray[Any], batch: Mapping[str, npt.NDArray[Any]]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """(begin, end, score of no answer over the best span's), [B] each; the earlier and shorter of equal spans.

        A span is scored by its first token's and its last's; no answer by the window that is least sure of it.
        """
        import numpy as np

        first, last = (np.asarray(logits[..., i], np.float64) for i in (0, 1))
        text, width = batch["characters"][..., 0] >= 0, first.shape[1]
        rows = np.arange(len(first))
        top, starts, stops = np.full(len(first), -np.inf), np.zeros_like(rows), np.zeros_like(rows)
        for extra in range(min(self.max_answer_length, width)):
            inside = text[:, : width - extra] & text[:, extra:]
            scores = np.where(inside, first[:, : width - extra] + last[:, extra:], -np.inf)
            place = scores.argmax(1)
            better = scores[rows, place] > top
            top = np.where(better, scores[rows, place], top)
            starts, stops = np.where(better, place, starts), np.where(better, place + extra, stops)
        none = first[rows, batch["null"]] + last[rows, batch["null"]]
        found = []
        for question in range(len(batch["context"])):
            own = np.flatnonzero(batch["questions"] == question)
            w = own[top[own].argmax()]
            above = float(none[own].min() - top[w])  # infinite where no token of the text is left
            silent = np.isinf(above) or (self.null_threshold is not None and above > self.null_threshold)
            characters = batch["characters"][w]
            span = (-1, -1) if silent else (characters[starts[w], 0], characters[stops[w], 1])
            found.append((*span, above))
        begin, end, null_score = zip(*found, strict=True)
        return np.array(begin, np.int64), np.array(end, np.int64), np.array(null_score, np.float64)

    def metrics(self, predictions: Predictions, weights: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
        """Means over questions, over those with an answer and those without; not a number where there are none."""
        import numpy as np

        answerable = predictions["answerable"].astype(bool)
        recognised = answerable == (predictions["begin"] >= 0)
        everyone = np.ones(len(answerable), bool)
        wanted = {
            "exact_match": (predictions["exact_match"], everyone),
            "f1": (predictions["f1"], everyone),
            "answerable_accuracy": (recognised.astype(np.float64), everyone),
            "exact_match_answerable": (predictions["exact_match"], answerable),
            "f1_answerable": (predictions["f1"], answerable),
            "f1_unanswerable": (predictions["f1"], ~answerable),
        }
        found = {}
        for name, (values, chosen) in wanted.items():
            total = weights @ chosen.astype(np.float64)
            mean = np.full(len(weights), np.nan)
            np.divide(weights @ (values * chosen), total, out=mean, where=total > 0)
            found[name] = mean
        return found

    def baselines(self, train: Sequence[Feature], heldout: Sequence[Feature]) -> dict[str, float]:
        """F1 of never answering, and of answering with the sentence that shares the most words with the question."""
        from tasks.metrics.squad import best, likeliest_sentence, token_f1

        def mean(answers: Sequence[str]) -> float:
            return sum(best(token_f1, a, f["answers"]) for a, f in zip(answers, heldout, strict=True)) / len(heldout)

        likeliest = [likeliest_sentence(feature["context"], feature["question"]) for feature in heldout]
        return {"no_answer": mean([""] * len(heldout)), "likeliest_sentence": mean(likeliest)}

    def samples(self, model: PreTrainedModel, heldout: Sequence[Feature]) -> list[dict[str, str]]:
        """Eight heldout questions spread over the split: how the text begins, its answers, and the model's."""
        import torch

        from tasks.models.inputs import model_inputs

        chosen = [heldout[i] for i in spread(len(heldout), SHOWN)]
        batch = self.collate(chosen)
        with torch.no_grad():
            logits = self.read(model(**model_inputs(batch, model)))["logits"].float().numpy()
        begin, end, _ = self.best_spans(logits, {name: tensor.numpy() for name, tensor in batch.items()})
        return [
            {
                "question": feature["question"],
                "text": feature["context"][:240],
                "truth": " | ".join(dict.fromkeys(feature["answers"])) or "(no answer)",
                "prediction": feature["context"][b:e].strip() if b >= 0 else "(no answer)",
            }
            for feature, b, e in zip(chosen, begin.tolist(), end.tolist(), strict=True)
        ]


OBJECTIVE = QuestionAnswering
