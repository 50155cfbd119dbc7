"""The end of every stage that trains: the model's files, and evidence that it learned something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.data.dataset.examples import ChosenExamples
from tasks.models.card import ModelCard
from tasks.models.loading import count_parameters, save_model
from tasks.objective import Objective, Processor
from tasks.stage import Job
from tasks.training.loop.features import Features
from tasks.training.loop.result import TrainResult


def finish(
    job: Job[Any],
    result: TrainResult,
    objective: Objective,
    features: Features,
    *,
    card: ModelCard,
    baselines: bool = False,
    processor: Processor | None = None,
) -> dict[str, float]:
    """Write model, samples and (where asked for) baselines on rank 0; returns the stage's summary metrics.

    processor: what the model ships with, where that is not what the objective reads with.
    """
    metrics = {**result.metrics(), "parameters": float(count_parameters(result.model))}
    if job.rank:
        return metrics
    save_model(result.model, job.output, processor=processor or objective.processor, card=card)
    for name, text in objective.processor_files().items():
        (job.output / name).write_text(text, encoding="utf-8")
    if not features.validation:
        return metrics
    if baselines:
        # Only what the model saw: a count model given more data would answer another question.
        seen = ChosenExamples(features.train, result.seen)
        values = objective.baselines(seen, features.validation)
        _write(job.records / "baselines.json", {"metric": objective.primary_metric, "values": values})
        metrics |= {f"baseline_{name}": value for name, value in values.items()}
    if samples := objective.shown(result.model, features.validation):
        _write(job.records / "samples.json", samples)
    return metrics


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
