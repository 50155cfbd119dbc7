"""The contract of an objective: what is learned. Every stage works with every objective through it.

An objective says how a data artifact becomes features, how features become a batch, which HF auto class fits, what the
loss is, what a prediction is, and which metrics apply. A stage never asks which objective it serves.

    objective: causal_lm                                    by its name, with its options as they are by default
    objective: {name: masked_lm, whole_words: true}         or with options, which are identity like every parameter

An objective is one file in the folder of its domain, `tasks/objectives/<domain>/<name>.py`; living there is its
registration. The file defines a subclass of `Objective`, whose fields are the options, and `OBJECTIVE = <that class>`.
Only light imports at its top: `forgeline plan` imports them all; torch and numpy are imported inside the methods, which
run in a job process.

Shapes: B examples of a batch, T tokens, C classes or vocabulary, N examples of a split, R bootstrap resamples.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, SerializeAsAny

from infra.config_check import did_you_mean
from infra.errors import StageError
from tasks.stage import StageParams

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    from tasks.losses.top_k import TopK
    from tasks.stage import InputArtifact

Feature = Mapping[str, Any]
Predictions = dict[str, "npt.NDArray[Any]"]
Batch = Mapping[str, "torch.Tensor"]
SHARED = "shared"
"""The folder in `tasks/objectives/` that is no domain: what several domains are made of."""


@dataclass(frozen=True)
class SpecialIds:
    """Token ids that a batch needs beside the examples': what it is padded with, what a decoder begins with."""

    pad: int = 0
    decoder_start: int = 0

    @classmethod
    def of(cls, config: PreTrainedConfig) -> SpecialIds:
        """As the model's config has them; a model that has no padding is one without texts, and 0 fills up its rows."""
        pad = getattr(config, "pad_token_id", None)
        pad = pad if isinstance(pad, int) and pad >= 0 else 0
        start = getattr(config, "decoder_start_token_id", None)
        return cls(pad, start if isinstance(start, int) else pad)


@dataclass(frozen=True)
class Prompt:
    """What a model is given to write on from, and the text it should write. `name`: the example's.

    input_ids: [T], no longer than was asked for; `tokens`: how many the whole prompt has. text: the prompt for people,
    and what a model that only copies would write. ends: ids of tokens that end an answer, beside the model's own.
    """

    name: str
    input_ids: npt.NDArray[np.integer]
    tokens: int
    text: str
    reference: str
    ends: tuple[int, ...] = ()


class Objective(StageParams):
    """The contract. Fields are the options of an objective; what has a body here fits most of them."""

    name: str = Field(description="The objective: the name of a file in `tasks/objectives/*/`.")

    data_types: ClassVar[tuple[str, ...]]
    """Artifact types it can read: `tokens` (packed) or `dataset` (text and label columns)."""
    primary_metric: ClassVar[str]
    """The metric people compare models by, and whether more is better. A property where an option decides it."""
    greater_is_better: ClassVar[bool]
    truncatable: ClassVar[bool] = True
    """Whether rows of `teacher_targets` are distributions, of which the likeliest classes may stand for all."""

    named_classes: ClassVar[bool] = False
    """Whether the model's head has a row for each of several classes, which have names."""

    text_metrics: ClassVar[tuple[str, ...]] = ()
    """Metrics of `tasks/metrics/written_text.py` by which texts are judged, the one that people compare first."""

    training_options: ClassVar[frozenset[str]] = frozenset()
    """Options that change what is learned and not how it is judged: models that differ in them can be compared."""

    @property
    def auto_class(self) -> str:
        """Name of the HF auto class, e.g. `AutoModelForCausalLM`."""
        raise NotImplementedError

    @property
    def inputs(self) -> tuple[str, ...]:
        """What of a batch the model sees at inference: the inputs of an exported graph, int64 each."""
        return ("input_ids", "attention_mask")

    @property
    def postprocessing_code(self) -> str:
        """Python lines for a model's page that make predictions, `scores`, of `logits` and the `batch` of its inputs.

        Of arrays of numpy and of torch alike. Empty: what the model gives is shown as it is.
        """
        return ""

    @property
    def examples_per_loss(self) -> int:
        """How many consecutive examples of a step have one loss together; micro-batches never tear them apart."""
        return 1

    def head(self, data: InputArtifact) -> dict[str, Any]:
        """HF config fields the data decides (number of labels and their names); empty where there are none."""
        return {}

    def with_labels(self, labels: Sequence[str]) -> Objective:
        """The same objective for a model whose classes have these names, in their order, as its card has them.

        For an objective whose metrics need the names, or whose classes are those of the training data and not of the
        data it is judged on. Every stage works with what this returns; before a model has classes, the data decide.
        """
        return self

    def features(
        self, data: InputArtifact, split: str, tokenizer: PreTrainedTokenizerFast | None, max_length: int
    ) -> Sequence[Feature]:
        """The split's examples in frozen order. Raises StageError on a split that is missing, empty or unusable."""
        raise NotImplementedError

    def unlabelled(
        self, data: InputArtifact, split: str, tokenizer: PreTrainedTokenizerFast | None, max_length: int
    ) -> Sequence[Feature]:
        """`features` of data that may have no labels, for what asks a teacher instead.

        Here all that `features` reads is needed: texts label themselves, and where a target is, decides what is asked.
        """
        return self.features(data, split, tokenizer, max_length)

    def noised(self, feature: Feature, seed: int) -> Feature:
        """The example as it is learned from, where that is drawn anew each time (masks, spans): a function of both.

        seed: of its place in the data stream; in a held-out split, of its place there.
        """
        return feature

    def with_text(
        self, feature: Feature, text: str, tokenizer: PreTrainedTokenizerFast | None, max_length: int
    ) -> Feature:
        """The example with another text (augmentation). Raises StageError where there is none of its own to change."""
        raise StageError(
            f"objective {self.name} does not support `augment`",
            where="augment",
            hint="What its examples are labelled with belongs to the words as they stand: leave `augment` out.",
        )

    def tokenizer_files(self) -> dict[str, str]:
        """Files of the tokenizer that options decide (a chat template), by name: they ship beside the model."""
        return {}

    def length(self, feature: Feature) -> int:
        """Tokens of an example, by which examples of like lengths are put together."""
        return len(feature["input_ids"])

    def collate(self, features: Sequence[Feature], special: SpecialIds) -> dict[str, torch.Tensor]:
        """A batch: what the model sees (`inputs`), and `labels`, padded to the longest example."""
        raise NotImplementedError

    def tokens(self, batch: Batch) -> int:
        """Tokens of a batch that are not padding."""
        return int(batch["attention_mask"].sum())

    def longest(self, batch: Batch) -> int:
        """Tokens of its longest sequence, padding included."""
        return int(batch["attention_mask"].shape[1])

    def units(self, batch: Batch) -> float:
        """How many units `loss` sums over in this batch; known before the forward pass, so ranks can agree on it.

        Where units have weights, the sum of these: dividing by it is torch's weighted mean.
        """
        return len(batch["labels"])

    def parts(self, batch: Batch) -> list[float]:
        """Units of each part of a loss that has several, each a mean of its own; empty where the loss is one sum.

        Where there are any, `loss` finds `step_units` in its batch: `units`, then these, of the step on all ranks.
        """
        return []

    def output(self, output: Any) -> torch.Tensor:
        """The tensor of the model's output that losses and predictions are made of: `logits` below."""
        logits: torch.Tensor = output.logits
        return logits

    def loss(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, float]:
        """(sum of the loss over the counted units, how many units): tokens for language models, else examples.

        Sums, not means, so that the average is right whatever the accumulation and however units fall on ranks.
        """
        raise NotImplementedError

    def step_metrics(self) -> dict[str, float]:
        """Numbers for the record of a step, summed over the calls of `loss` since the last one and over the ranks."""
        return {}

    def distillation_loss(
        self, logits: torch.Tensor, teacher_logits: torch.Tensor, batch: Batch, temperature: float
    ) -> torch.Tensor:
        """Distillation loss summed over the units of `loss`: T^2 * KL(teacher || student) (Hinton et al., 2015)."""
        return self.stored_distillation_loss(logits, self.teacher_targets(teacher_logits, batch)[0], batch, temperature)

    def teacher_targets(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(what `distillation_loss` reads of an output, rows [N, C] or [N], example by example; rows of each example
        [B]).

        Raises StageError where an example's rows depend on the batch it is in: those cannot be stored.
        """
        raise StageError(
            f"outputs of objective {self.name} depend on which examples meet in a batch",
            where="teacher",
            hint="They cannot be stored: let `distill` ask the teacher itself.",
        )

    def stored_distillation_loss(
        self, logits: torch.Tensor, targets: torch.Tensor | TopK, batch: Batch, temperature: float
    ) -> torch.Tensor:
        """`distillation_loss` against stored `teacher_targets`."""
        from tasks.losses.distillation import distillation

        return distillation(self.teacher_targets(logits, batch)[0], targets, temperature)

    def predictions(self, logits: npt.NDArray[Any], batch: Mapping[str, npt.NDArray[Any]]) -> Predictions:
        """What evaluation keeps of a batch, one row per example: enough to compute every metric later."""
        raise NotImplementedError

    def choices(
        self, logits: npt.NDArray[Any], batch: Mapping[str, npt.NDArray[Any]]
    ) -> npt.NDArray[np.integer] | None:
        """What the model says, a row for each thing it decides: int [U] or [U, K]. None where its outputs are numbers.

        By the share of equal rows two models agree (`tasks/compression/onnx/fidelity.py`).
        """
        return None

    def metrics(self, predictions: Predictions, weights: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
        """Metric name -> [R] values, one for each row of example weights [R, N] (ones: the point estimate).

        A metric of class 3 alone is called `name@#3` (`tasks/metrics/class_names.py` puts the label there).
        """
        raise NotImplementedError

    def baselines(self, train: Sequence[Feature], heldout: Sequence[Feature]) -> dict[str, float]:
        """Values of `primary_metric` a model must beat to mean anything: majority class, unigram, bigram."""
        raise NotImplementedError

    def prompts(
        self, data: InputArtifact, split: str, tokenizer: PreTrainedTokenizerFast | None, max_length: int
    ) -> Sequence[Prompt]:
        """What stage `generate` has a model write on from, in frozen order; a longer prompt is cut to `max_length`.

        References do not depend on the tokenizer, so that models of different vocabularies are judged by the same ones.
        Raises StageError where the objective writes no text.
        """
        raise StageError(
            f"objective {self.name} writes no text",
            where="models",
            hint="`generate` takes models of causal_lm and seq2seq; `evaluate` judges the others.",
        )

    @property
    def reference_column(self) -> str | None:
        """Column of a dataset that the references of `prompts` are read from; None: there is none."""
        return None

    def with_reference(self, value: Any, text: str) -> Any:
        """What such a column holds once `text` is the reference; value: what it holds now."""
        return text

    def samples(self, model: PreTrainedModel, tokenizer: Any, heldout: Sequence[Feature]) -> list[dict[str, str]]:
        """A few human-readable outputs for the report: prompt and continuation, or text, truth and prediction."""
        raise NotImplementedError


def class_head(labels: Sequence[str]) -> dict[str, Any]:
    """HF config fields of a head with these classes, numbered in their order."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def spread(size: int, count: int) -> list[int]:
    """Up to `count` places of range(size), evenly spread, the first and the last among them: examples to show."""
    shown = min(size, count)
    return [i * (size - 1) // max(shown - 1, 1) for i in range(shown)]


@cache
def _modules() -> dict[str, str]:
    """Name of each objective -> its module: the files directly in the folder of a domain."""
    package = importlib.import_module("tasks.objectives")
    files = (file for folder in package.__path__ for file in Path(folder).glob("*/*.py"))
    return {
        file.stem: f"{package.__name__}.{file.parent.name}.{file.stem}"
        for file in sorted(files)
        if file.parent.name != SHARED and file.stem != "__init__"
    }


def objective_names() -> list[str]:
    """Names of the objectives, sorted."""
    return sorted(_modules())


@cache
def objective_class(name: str) -> type[Objective]:
    """The class that the file of this name calls its `OBJECTIVE`. Raises StageError on a name that is none."""
    if name not in _modules():
        raise StageError(f"unknown objective {name!r}", hint=f"Known objectives: {', '.join(objective_names())}.")
    found: type[Objective] = importlib.import_module(_modules()[name]).OBJECTIVE
    return found


def objective(settings: str | Mapping[str, Any]) -> Objective:
    """An objective by its name, or by its name and options, as a pipeline file or a model's card spells it."""
    given = {"name": settings} if isinstance(settings, str) else settings
    return objective_class(str(given["name"])).model_validate(given)


def _parsed(value: Any) -> Any:
    if isinstance(value, Objective):
        return value
    name = value.get("name") if isinstance(value, dict) else value
    if not isinstance(name, str):
        raise ValueError("an objective is its name, or {name: ..., and options}")
    if name not in objective_names():
        raise ValueError(f"unknown objective {name!r}; {did_you_mean(name, objective_names())}")
    known = objective_class(name).model_fields
    for option in value if isinstance(value, dict) else ():
        if option not in known:
            raise ValueError(f"{name} has no option `{option}`; {did_you_mean(str(option), known)}")
    return objective(value)


class _Schema:
    """JSON Schema of the field: a name, or the options of one objective."""

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        options = [objective_class(name).model_json_schema() for name in objective_names()]
        return {"anyOf": [{"enum": objective_names()}, *options]}


ObjectiveField = Annotated[SerializeAsAny[Objective], BeforeValidator(_parsed), _Schema()]
"""Type of a field that chooses an objective."""
