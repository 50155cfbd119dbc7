"""Parity: the training loop's losses, step by step, beside those of a bare torch loop over whole batches.

The bare loop takes the loss of the model itself (Hugging Face's) where nothing else is said. What a comparison finds
goes into the test report, from which `make parity` makes its page.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from tasks.objective import Objective
from tasks.training.engine.batch import BatchSplit
from tasks.training.loop.result import TrainResult
from tasks.training.loop.sampler import Sampler
from tasks.training.loop.schedule import learning_rate_factor
from tasks.training.loop.train import train
from tasks.training.settings import TrainingParams

SEED, MAX_GRAD_NORM, TOLERANCE = 3, 0.5, 1e-4
MeanLoss = Callable[[PreTrainedModel, Sequence[Mapping[str, Any]], Mapping[str, torch.Tensor]], torch.Tensor]


class Curves(NamedTuple):
    """Both trainings: what the loop returned, the losses of the bare one, and its model."""

    result: TrainResult
    losses: list[float]
    reference: PreTrainedModel


class Parity:
    """Trains twice and compares; one of them a test."""

    def __init__(self, jobs: ModuleType, tiny: ModuleType, folder: Path, record: Callable[[str, object], None]) -> None:
        self.jobs, self.tiny, self.folder, self.record = jobs, tiny, folder, record

    def __call__(
        self,
        objective: Objective,
        features: Sequence[Mapping[str, Any]],
        fresh: Callable[[], PreTrainedModel],
        *,
        mean_loss: MeanLoss | None = None,
        validation: Sequence[Mapping[str, Any]] = (),
        batch: int = 8,
        micro: int = 2,
        steps: int = 12,
        rate: float = 1e-2,
        falls: float,
    ) -> Curves:
        """Asserts that no step's loss is further away than TOLERANCE.

        fresh: makes the same untrained model whenever it is called. mean_loss: of a step's examples, given also as a
        batch. falls: by how much the loss falls at least, because two loops that learn nothing would agree too.
        """
        given = {"max_steps": steps, "global_batch_size": batch, "learning_rate": rate}
        params = TrainingParams.model_validate({**given, "max_grad_norm": MAX_GRAD_NORM, "seed": SEED})
        job = self.jobs.make_job(self.folder, params, execution={"per_device_train_batch_size": micro})
        result = train(job, fresh(), objective, features, validation, params)
        found = [json.loads(line)["loss"] for line in (job.records / "train.jsonl").read_text().splitlines()]
        reference, sampler = fresh(), Sampler(len(features), SEED, BatchSplit(batch, 1, batch))
        losses = self.tiny.plain_training(
            reference,
            objective if mean_loss else self.tiny.OwnLoss(reference, objective, SEED),
            features,
            [sampler.global_batch(step) for step in range(steps)],
            lambda step: rate * learning_rate_factor(params.schedule, step, steps),
            weight_decay=params.optimizer.weight_decay,
            max_grad_norm=MAX_GRAD_NORM,
            mean_loss=mean_loss,
        )
        away = max(abs(a - b) for a, b in zip(found, losses, strict=True))
        facts = {
            "objective": objective.name,
            "options": objective.model_dump(exclude_defaults=True, exclude={"name"}),
            "model": reference.config.model_type,
            "batch": batch,
            "micro": micro,
            "first": losses[0],
            "least": min(losses),
            "away": away,
            "steps": steps,
        }
        self.record("parity", json.dumps(facts))
        assert away <= TOLERANCE, f"a step's loss is {away:.2g} away from the bare loop's"
        assert min(losses) < losses[0] - falls
        return Curves(result, losses, reference)
