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
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, PrivateAttr, SerializeAsAny

from infra.config_check import did_you_mean
from infra.errors import StageError
from tasks.data.dataset.examples import Feature as Feature
from tasks.processors.processor import Port as Port
from tasks.processors.processor import Processor as Processor
from tasks.stage import StageParams

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from transformers import PreTrainedModel

    from tasks.losses.top_k import TopK
    from tasks.stage import InputArtifact

Batch = Mapping[str, "torch.Tensor"]
Outputs = Mapping[str, "torch.Tensor"]
"""What a forward pass gives, by name."""
Arrays = Mapping[str, "npt.NDArray[Any]"]
"""A batch, or outputs, outside torch."""
Predictions = dict[str, "npt.NDArray[Any]"]
SHARED = "shared"
"""The folder in `tasks/objectives/` that is no domain: what several domains are made of."""


class Augmentation(StageParams):
    """How examples are changed a little while a model learns, or is judged.

    A domain has one, `AUGMENTATION` in `tasks/objectives/<domain>/inputs/augmentation.py`, and `PERTURBATION`, the same
    with other defaults, for what a model is judged on. A pipeline file names the fields of one of them.
    """

    domain: ClassVar[str]

    def changed(self, raw: Mapping[str, Any], seed: int, place: int) -> Mapping[str, Any]:
        """The values of a row as they are met at a place of the data stream; `raw` itself where nothing changes."""
        raise NotImplementedError


@dataclass(frozen=True)
class Request:
    """What a model is asked to produce something for. name: the example's. shown: the request, for people.

    reference: what should be produced. A domain's own subclass says what the model is given.
    """

    name: str
    shown: str
    reference: Any


class Objective(StageParams):
    """The contract. Fields are the options of an objective; what has a body here fits most of them."""

    name: str = Field(description="The objective: the name of a file in `tasks/objectives/*/`.")

    data_types: ClassVar[tuple[str, ...]] = ("dataset",)
    """Artifact types it can read: `tokens` (packed) or `dataset` (rows)."""
    new_model_data: ClassVar[tuple[str, ...]] = ("tokens", "dataset")
    """Which of them say how a new model reads: without them its processor would not be known."""
    primary_metric: ClassVar[str]
    """The metric people compare models by, and whether more is better. A property where an option decides it."""
    greater_is_better: ClassVar[bool]
    truncatable: ClassVar[bool] = True
    """Whether rows of `teacher_targets` are distributions, of which the likeliest classes may stand for all."""

    named_classes: ClassVar[bool] = False
    """Whether the model's head has a row for each of several classes, which have names."""

    produces: ClassVar[str | None] = None
    """The kind of what its models produce: the name of a folder in `tasks/generation/`."""
    product_metrics: ClassVar[tuple[str, ...]] = ()
    """Metrics by which that is scored, the one that models are compared by first."""

    training_options: ClassVar[frozenset[str]] = frozenset()
    """Options that change what is learned and not how it is judged: models that differ in them can be compared."""

    work_unit: ClassVar[str] = "examples"
    """What `work` counts: tokens, images, seconds. Training speed is measured in it."""

    augmentation: ClassVar[str | None] = None
    """The domain whose augmentation its examples take (`tasks/objectives/<domain>/inputs/augmentation.py`)."""

    _processor: Any = PrivateAttr(None)
    _labels: tuple[str, ...] = PrivateAttr(())
    _config: Any = PrivateAttr(None)

    # --- which model, which data ---

    @property
    def auto_class(self) -> str:
        """Name of the HF auto class, e.g. `AutoModelForCausalLM`."""
        raise NotImplementedError

    def load_processor(self, folder: Path, limit: int | None = None) -> Processor | None:
        """The processor beside a model; None where there is none. limit: how much an example may have."""
        raise NotImplementedError

    def new_processor(self, data: InputArtifact) -> Processor:
        """The processor of a new model that learns from `data`. Raises StageError where the data do not say which."""
        raise NotImplementedError

    def bound(
        self, processor: Processor | None = None, labels: Sequence[str] | None = None, config: Any = None
    ) -> Self:
        """The same objective for one model: what it reads with, the names of its classes in their order, its HF config.

        Every stage works with what this returns. What is not given stays as it was; before a model has classes, the
        data decide which there are.
        """
        known = self.model_copy()
        known._processor = self._processor if processor is None else processor
        known._labels = self._labels if labels is None else tuple(labels)
        known._config = self._config if config is None else config
        return known

    @property
    def processor(self) -> Any:
        """What the model reads with; None before one was given."""
        return self._processor

    def head(self, data: InputArtifact) -> dict[str, Any]:
        """HF config fields the data decides (number of labels and their names); empty where there are none."""
        return {}

    def reads(self, folder: Path) -> bool:
        """Whether a model with these files reads what this objective's processor makes."""
        raise NotImplementedError

    @property
    def inputs(self) -> Mapping[str, Port]:
        """What of a batch the model sees at inference: the inputs of an exported graph."""
        raise NotImplementedError

    @property
    def outputs(self) -> Mapping[str, Port]:
        """What losses and predictions are made of: the outputs of an exported graph."""
        raise NotImplementedError

    @property
    def postprocessing_code(self) -> str:
        """Python lines for a model's page that make predictions, `scores`, of `logits` and the `batch` of its inputs.

        Of arrays of numpy and of torch alike. Empty: what the model gives is shown as it is.
        """
        return ""

    def processor_files(self) -> dict[str, str]:
        """Files of the processor that options decide (a chat template), by name: they ship beside the model."""
        return {}

    # --- examples ---

    def examples(self, data: InputArtifact, split: str, *, labelled: bool = True) -> Sequence[Feature]:
        """The split's examples in frozen order. Raises StageError on a split that is missing, empty or unusable.

        labelled: False for data that may have no labels, where a teacher is asked instead.
        """
        raise NotImplementedError

    def noised(self, feature: Feature, seed: int) -> Feature:
        """The example as it is learned from, where that is drawn again each time (masks, spans): a function of both.

        seed: of its place in the data stream; in a held-out split, of its place there.
        """
        return feature

    @property
    def examples_per_loss(self) -> int:
        """How many consecutive examples of a step have one loss together; micro-batches never tear them apart."""
        return 1

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        """A batch: what the model sees (`inputs`), and `labels`, padded to the longest example."""
        raise NotImplementedError

    def rows(self, batch: Batch | Arrays) -> int:
        """Rows of the model's inputs and outputs in a batch: more than examples where one has several (windows)."""
        return len(batch[next(iter(self.inputs))])

    def work(self, batch: Batch) -> float:
        """How much of `work_unit` a batch holds, without padding."""
        return self.rows(batch)

    def length_of(self, batch: Batch) -> int:
        """Size of the longest free axis that `work_unit` names among the inputs, padding included; 1 without one."""
        found = [
            batch[name].shape[axis]
            for name, port in self.inputs.items()
            for axis, size in enumerate(port.axes)
            if size == self.work_unit and name in batch
        ]
        return int(max(found, default=1))

    # --- learning ---

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

    def read(self, output: Any) -> Outputs:
        """The `outputs` out of what the model's `forward` returns."""
        return {name: getattr(output, name) for name in self.outputs}

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[torch.Tensor, float]:
        """(sum of the loss over the counted units, how many units): tokens for language models, else examples.

        Sums, not means, so that the average is right whatever the accumulation and however units fall on ranks.
        """
        raise NotImplementedError

    def step_metrics(self) -> dict[str, float]:
        """Numbers for the record of a step, summed over the calls of `loss` since the last one and over the ranks."""
        return {}

    def distillation_loss(
        self, outputs: Outputs, teacher_outputs: Outputs, batch: Batch, temperature: float
    ) -> torch.Tensor:
        """Distillation loss summed over the units of `loss`: T^2 * KL(teacher || student) (Hinton et al., 2015)."""
        return self.stored_distillation_loss(
            outputs, self.teacher_targets(teacher_outputs, batch)[0], batch, temperature
        )

    def teacher_targets(self, outputs: Outputs, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
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
        self, outputs: Outputs, targets: torch.Tensor | TopK, batch: Batch, temperature: float
    ) -> torch.Tensor:
        """`distillation_loss` against stored `teacher_targets`."""
        from tasks.losses.distillation import distillation

        return distillation(self.teacher_targets(outputs, batch)[0], targets, temperature)

    # --- judging ---

    def predictions(self, outputs: Arrays, batch: Arrays) -> Predictions:
        """What evaluation keeps of a batch, one row per example: enough to compute every metric later."""
        raise NotImplementedError

    def choices(self, outputs: Arrays, batch: Arrays) -> npt.NDArray[np.integer] | None:
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

    def samples(self, model: PreTrainedModel, heldout: Sequence[Feature]) -> list[dict[str, str]]:
        """A few outputs for people to look at, title -> text, or a picture as a `data:image/...` URL."""
        raise NotImplementedError

    def shown(self, model: PreTrainedModel, heldout: Sequence[Feature]) -> list[dict[str, str]]:
        """`samples`; none where nothing of them could be read."""
        return self.samples(model, heldout) if self._processor is not None and self._processor.readable else []

    def pictures(self, data: InputArtifact, split: str, places: Sequence[int]) -> list[str | None]:
        """What examples of a split look like, as `data:image/...` URLs of at most 64 KB. None: their text says it.

        Needs no processor: this is what the data have, not what a model reads.
        """
        return [None] * len(places)

    # --- producing (stages generate, pseudo_label) ---

    def requests(self, data: InputArtifact, split: str) -> Sequence[Request]:
        """What a model is asked to produce something for, in frozen order; one that is too long is cut to the limit.

        References do not depend on the processor, so that models that read differently are judged by the same ones.
        """
        raise NotImplementedError

    @property
    def reference_column(self) -> str | None:
        """Column of a dataset that the references of `requests` are read from; None: there is none."""
        return None

    def with_reference(self, value: Any, output: Any) -> Any:
        """The new value of such a column, once an output (`tasks/generation/product.py`) is the reference."""
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


def _of_domains(name: str) -> list[ModuleType]:
    """The file `inputs/<name>.py` of each domain that has one, in the order of the domains."""
    package = importlib.import_module("tasks.objectives")
    files = (file for folder in package.__path__ for file in Path(folder).glob(f"*/inputs/{name}.py"))
    domains = sorted(file.parent.parent.name for file in files)
    return [importlib.import_module(f"{package.__name__}.{domain}.inputs.{name}") for domain in domains]


def headless_objective(folder: Path) -> Objective:
    """Of a model without a head, in these files: that of the domain whose processor lies there.

    A domain that offers one has it as `HEADLESS` in `tasks/objectives/<domain>/inputs/headless.py`. Raises StageError.
    """
    for module in _of_domains("headless"):
        found: Objective = module.HEADLESS()
        if found.reads(folder):
            return found
    raise StageError(
        "nothing beside the model says what it reads: no tokenizer, no image processor",
        where=folder.name,
        hint="Put a `finetune` stage before, which says it.",
    )


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


@cache
def _augmentations(kind: str) -> list[type[Augmentation]]:
    """The class that each domain calls so, in the order of the domains."""
    return [getattr(module, kind) for module in _of_domains("augmentation")]


class _AugmentationOf:
    """How a field that takes any domain's augmentation is read, and described in the JSON Schema."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def parsed(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = _augmentations(self.kind)
        found = [one for one in known if value.keys() & one.model_fields.keys()]
        if len(found) > 1:
            raise ValueError(f"settings for {' and '.join(one.domain for one in found)} do not go together")
        names = [name for one in known for name in one.model_fields]
        for name in value if not found else ():
            raise ValueError(f"no setting `{name}`; {did_you_mean(str(name), names)}")
        return (found or known[-1:])[0].model_validate(value)

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        return {"anyOf": [handler(one.__pydantic_core_schema__) for one in _augmentations(self.kind)]}


class _Schema:
    """JSON Schema of the field: a name, or the options of one objective."""

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        options = [objective_class(name).model_json_schema() for name in objective_names()]
        return {"anyOf": [{"enum": objective_names()}, *options]}


ObjectiveField = Annotated[SerializeAsAny[Objective], BeforeValidator(_parsed), _Schema()]
"""Type of a field that chooses an objective."""

_CHANGES, _JUDGED = _AugmentationOf("AUGMENTATION"), _AugmentationOf("PERTURBATION")
AugmentField = Annotated[SerializeAsAny[Augmentation], BeforeValidator(_CHANGES.parsed), _CHANGES]
"""Type of a field that says how training examples are changed, of whatever domain."""
PerturbationField = Annotated[SerializeAsAny[Augmentation], BeforeValidator(_JUDGED.parsed), _JUDGED]
"""Type of a field that says how examples are changed that a model is judged on."""
