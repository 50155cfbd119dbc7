"""Several objectives as one, for the training loop: their batches side by side, their losses summed by weights.

The loss of a step is the sum over the tasks of w_k L_k, where L_k is the mean over the units that task k has in the
whole global batch: what training on it alone would minimise. With fixed weights w_k is given. With learned ones
(Kendall, Gal and Cipolla, 2018, in the form for classification) it is exp(-s_k), and s_k / 2 is added, where s_k is
the log-variance of the task: its weight then goes to 1 / (2 L_k). Like every objective this gives sums: here over the
examples of the step, whose number the loop divides by.

A micro-batch that happens to hold no example of some task gets one that counts nothing, because ranks that reduce
gradients together must all have the same ones, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, PrivateAttr

from tasks.metrics.class_names import with_class_names
from tasks.objective import Batch, Feature, Objective, Outputs
from tasks.training.loop.validate import Forward, validate
from tasks.training.multitask.model import task_part

if TYPE_CHECKING:
    from tasks.training.engine.ranks import Ranks


LOG_VARIANCES = "log_variances"
"""Output of the model, [K], where the weights are learned."""


class TaskFeatures(Sequence[Feature]):
    """The examples of all tasks one after the other, each as {"task", "feature"}."""

    def __init__(self, parts: Mapping[str, Sequence[Feature]]) -> None:
        self.parts = dict(parts)

    @property
    def counts(self) -> list[int]:
        """Examples of each task."""
        return [len(part) for part in self.parts.values()]

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, index: Any) -> Any:
        place = int(index)
        for task, part in self.parts.items():
            if place < len(part):
                return {"task": task, "feature": part[place]}
            place -= len(part)
        raise IndexError(index)


class Multitask(Objective):
    """See the module. No stage offers it by name: the `multitask` stage makes it."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: Literal["multitask"] = "multitask"
    tasks: dict[str, Any]
    """Objectives, in the order of the model's heads."""
    weights: dict[str, float] | None
    """None: learned."""
    fillers: dict[str, Any]
    """An example of each task, for micro-batches that have none."""
    labels: dict[str, list[str] | None]
    """Class names of each task."""
    _step_metrics: dict[str, torch.Tensor] = PrivateAttr(default_factory=dict)

    data_types: ClassVar[tuple[str, ...]] = ()
    primary_metric: ClassVar[str] = "loss"
    greater_is_better: ClassVar[bool] = False

    @property
    def work_unit(self) -> str:  # type: ignore[override]  # that of its tasks, which read alike
        return str(next(iter(self.tasks.values())).work_unit)

    def noised(self, feature: Feature, seed: int) -> Feature:
        task = feature["task"]
        return {"task": task, "feature": self.tasks[task].noised(feature["feature"], seed)}

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        """`<task>/<name>` of each task; `examples`: how many there are; `present` float32 [K]: 0 for a filler."""
        batch, present = {"examples": torch.tensor(float(len(features)))}, []
        for task, objective in self.tasks.items():
            own = [feature["feature"] for feature in features if feature["task"] == task]
            present.append(float(bool(own)))
            part = objective.collate(own or [self.fillers[task]])
            batch |= {f"{task}/{name}": value for name, value in part.items()}
        return {**batch, "present": torch.tensor(present)}

    def work(self, batch: Batch) -> float:
        return sum(objective.work(part) for objective, part in self._counted(batch))

    def length_of(self, batch: Batch) -> int:
        return max(objective.length_of(part) for objective, part in self._counted(batch))

    def units(self, batch: Batch) -> float:
        return float(batch["examples"])

    def parts(self, batch: Batch) -> list[float]:
        present = batch["present"].tolist()
        return [
            objective.units(task_part(batch, task)) if there else 0.0
            for (task, objective), there in zip(self.tasks.items(), present, strict=True)
        ]

    def read(self, output: Any) -> Outputs:
        """`<task>/<name>` of each task that has some, and `log_variances`."""
        found = {
            f"{task}/{name}": value
            for task, objective in self.tasks.items()
            if task in output
            for name, value in objective.read(output[task]).items()
        }
        variances = output.get(LOG_VARIANCES)
        return found if variances is None else {**found, LOG_VARIANCES: variances}

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[torch.Tensor, float]:
        """batch also has `step_units`, float32 [1 + K]: examples, and units of each task, of the whole step."""
        examples, units = batch["step_units"][0], batch["step_units"][1:]
        total = torch.zeros((), device=units.device)
        for k, (task, objective) in enumerate(self.tasks.items()):
            loss, _ = objective.loss(task_part(outputs, task), task_part(batch, task))
            # A step of a task without units (nothing masked, no tag) has a loss of zero, not one of 0 / 0.
            loss = loss * (batch["present"][k] * torch.where(units[k] > 0, examples / units[k], 0.0))
            self._note(f"{task}/loss", loss / examples)
            if LOG_VARIANCES not in outputs:
                assert self.weights is not None
                total = total + self.weights[task] * loss
            else:
                log_variance = outputs[LOG_VARIANCES][k]
                total = total + torch.exp(-log_variance) * loss + batch["examples"] * log_variance / 2
                self._note(f"{task}/log_variance", log_variance * batch["examples"] / examples)
        return total, self.units(batch)

    def _note(self, name: str, value: torch.Tensor) -> None:
        self._step_metrics[name] = self._step_metrics.get(name, 0.0) + value.detach()

    def step_metrics(self) -> dict[str, float]:
        found = {name: float(value) for name, value in self._step_metrics.items()}
        self._step_metrics.clear()
        return found

    def validated(
        self,
        forward: Forward,
        features: Sequence[Feature],
        ranks: Ranks,
    ) -> dict[str, float]:
        """`loss`: the tasks' losses summed as in training; `<task>/<metric>` of tasks with held-out examples."""
        assert isinstance(features, TaskFeatures)
        found: dict[str, float] = {}
        total = 0.0
        for k, (task, objective) in enumerate(self.tasks.items()):
            alone = _Alone(forward, task)
            values = validate(objective, alone, features.parts[task], ranks)
            if not values:
                continue
            if self.weights is not None:
                total += self.weights[task] * values["loss"]
            elif alone.log_variances is not None:
                log_variance = alone.log_variances[k]
                total += float(torch.exp(-log_variance) * values["loss"] + log_variance / 2)
            named = with_class_names(values, self.labels[task])
            found |= {f"{task}/{name}": value for name, value in named.items()}
        return {"loss": total, **found} if found else {}

    def _counted(self, batch: Batch) -> Iterator[tuple[Objective, dict[str, torch.Tensor]]]:
        for (task, objective), present in zip(self.tasks.items(), batch["present"].tolist(), strict=True):
            if present:
                yield objective, task_part(batch, task)


class _Alone:
    """The forward pass for one task: a batch of it -> its outputs."""

    def __init__(self, forward: Forward, task: str) -> None:
        self.forward, self.task = forward, task
        self.log_variances: torch.Tensor | None = None

    def __call__(self, batch: Mapping[str, torch.Tensor]) -> Outputs:
        outputs = self.forward({f"{self.task}/{name}": value for name, value in batch.items()})
        self.log_variances = outputs.get(LOG_VARIANCES)
        return task_part(outputs, self.task)
