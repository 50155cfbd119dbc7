"""A model under evaluation, in a process of its own: predictions, metrics, latency, memory, samples."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from infra.errors import StageError
from infra.process_memory import peak_mb, reset_peak, resident_mb
from tasks.data.dataset.examples import example_order
from tasks.evaluation.perturbations import perturbed, robustness
from tasks.evaluation.scores import higher_is_better
from tasks.evaluation.slices import Masks, slice_name, within
from tasks.metrics.bootstrap import replicates
from tasks.metrics.class_names import columns, with_class_names
from tasks.models.card import read_card
from tasks.models.runtime import TorchRuntime, import_runtime, load_runtime
from tasks.models.trained_for import trained_for
from tasks.training.loop.features import drawn_once

if TYPE_CHECKING:
    from tasks.objective import Augmentation
    from tasks.stage import InputArtifact

BATCH = 32
WARM_UP = 3


class EvaluatedModel:
    """One model and the examples it is judged on, as the model itself reads them."""

    def __init__(
        self,
        model: InputArtifact,
        data: InputArtifact,
        split: str,
        threads: int,
        masks: Masks,
        perturbations: Mapping[str, Augmentation],
        seed: int,
        labels: Sequence[str] | None = None,
    ) -> None:
        """labels: the classes in the order that numbers them here; None: as the model has them."""
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        torch.set_num_threads(threads)
        self.artifact, self.data = model, data
        card = read_card(model.path)
        self.labels = list(labels) if labels is not None and card.labels is not None else card.labels
        self.columns = columns(card.labels, self.labels)
        self.objective = trained_for(model.path, self.labels or [])
        plain = self.objective.examples(data, split)
        self.heldout = drawn_once(self.objective, plain)
        self.masks = masks
        self.changed = {name: perturbed(self.objective, plain, one, seed) for name, one in perturbations.items()}
        self.threads = threads
        self.runtime: Any = None

    def load(self) -> dict[str, float]:
        """Load the model; from here on memory is counted."""
        import_runtime(self.artifact.manifest.type, self.objective.auto_class)
        reset_peak()
        self.before = resident_mb()
        self.runtime = load_runtime(self.artifact, self.threads, self.columns)
        return {"n": len(self.heldout), "parameters": self.runtime.parameters}

    def batch(self, features: Sequence[Any]) -> dict[str, npt.NDArray[Any]]:
        return {name: tensor.numpy() for name, tensor in self.objective.collate(features).items()}

    def predict(self) -> dict[str, npt.NDArray[Any]]:
        """Predictions for every example, in frozen order."""
        self.predictions = self._predictions(self.heldout)
        return self.predictions

    def _predictions(self, examples: Sequence[Any]) -> dict[str, npt.NDArray[Any]]:
        """One row an example, in their order. Short examples run together, so that little is padding.

        Raises StageError on NaN, of which metrics would make anything: the largest of them is class 0.
        """
        order = example_order(examples)
        parts: list[dict[str, npt.NDArray[Any]]] = []
        for start in range(0, len(order), BATCH):
            batch = self.batch([examples[int(i)] for i in order[start : start + BATCH]])
            parts.append(self.objective.predictions(self._forward(batch), batch))
        back = np.argsort(order, kind="stable")
        found = {name: np.concatenate([part[name] for part in parts])[back] for name in parts[0]}
        floats = [array for array in found.values() if array.dtype.kind == "f"]
        broken = sum(np.isnan(array).reshape(len(order), -1).any(1) for array in floats)
        if count := np.count_nonzero(broken):
            raise StageError(
                f"{self.artifact.stage!r} returned NaN for {count} of {len(order)} examples",
                where="models",
                hint="Its weights are damaged, or its numbers overflow: see the losses of its training, and the scales "
                "of its quantization.",
            )
        return found

    def peak_memory(self) -> float:
        """MB added at most by loading and running the model, over what the libraries and the examples take."""
        return max(0.0, peak_mb() - self.before)

    def score(self, resamples: int, seed: int) -> tuple[dict[str, float], dict[str, npt.NDArray[np.float64]]]:
        """Point estimates, and each metric on every bootstrap resample: of all examples, slices, and changed texts."""
        changed = {
            name: self._predictions(drawn_once(self.objective, drawn.at_own_places()))
            for name, drawn in self.changed.items()
        }

        def metrics(weights: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
            clean = self._metrics(self.predictions, weights)
            found = dict(clean)
            for slicing, slices in self.masks.items():
                for value, mask in slices.items():
                    inside = within(partial(self._metrics, self.predictions), mask, weights)
                    found |= {f"{metric}{slice_name(slicing, value)}": drawn for metric, drawn in inside.items()}
            for name, predictions in changed.items():
                worse = self._metrics(predictions, weights)
                found |= robustness(name, clean, worse, partial(higher_is_better, self.objective))
            return found

        return replicates(metrics, len(self.heldout), resamples, seed)

    def _metrics(
        self, predictions: dict[str, npt.NDArray[Any]], weights: npt.NDArray[np.float64]
    ) -> dict[str, npt.NDArray[np.float64]]:
        return with_class_names(self.objective.metrics(predictions, weights), self.labels)

    def time(self, batch_size: int, repeats: int, warm: bool) -> list[float]:
        """Milliseconds of each of `repeats` forward passes over the first `batch_size` examples."""
        chosen = [self.heldout[i % len(self.heldout)] for i in range(batch_size)]
        batch = self.batch(chosen)
        for _ in range(0 if warm else WARM_UP):
            self._forward(batch)
        found = []
        for _ in range(repeats):
            start = time.perf_counter()
            self._forward(batch)
            found.append((time.perf_counter() - start) * 1e3)
        return found

    def _forward(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        outputs: dict[str, npt.NDArray[Any]] = self.runtime.outputs(batch)
        return outputs

    def samples(self) -> list[dict[str, str]]:
        """Outputs for people to read; empty for a runtime that cannot be asked for them."""
        if not isinstance(self.runtime, TorchRuntime):
            return []
        return self.objective.shown(self.runtime.model, self.heldout)

    def baselines(self) -> dict[str, float]:
        """What a model must beat, computed from the training split; needs no model."""
        return self.objective.baselines(self.objective.examples(self.data, "train"), self.heldout)
