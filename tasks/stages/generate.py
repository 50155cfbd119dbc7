"""generate: models produce, side by side for the same examples, and what they made is scored against references.

How a text is written, and what it is scored by, is the product's business (`tasks/generation/product.py`).

Payload, laid out as `evaluate` lays it out, so that gates and reports read it: `scores.json`,
`predictions.safetensors` (`<model>/<array>`, what a score is made of, one row an example), `replicates.safetensors`
(`<model>/<metric>`, the same resamples for every model). Nothing in it depends on the clock. Evidence in `records/`:
`outputs.jsonl` (every output of every model), `samples.json` (some, for the report), `speed.json` (tokens per second).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, SerializeAsAny, field_validator

from infra.errors import StageError
from tasks.generation.kinds import DEFAULT, Decoding, Metric, Step, kinds, product_of
from tasks.objective import ObjectiveField, spread
from tasks.stage import Input, InputArtifact, Job, Stage, StageParams

if TYPE_CHECKING:
    from tasks.generation.product import Output, Product
    from tasks.objective import Objective, Request

SHOWN = 12


class Params(StageParams):
    """Models, prompts, decoding and metrics."""

    models: Annotated[list[str], Input("model")] = Field(min_length=1, description="Models that generate the texts.")
    data: Annotated[str, Input("dataset")] = Field(description="Data, with the split (`talks.test`); default test.")
    objective: ObjectiveField | None = Field(
        None,
        description="How prompts and references are read from the data. None: as each model was trained to. Weights "
        "that were trained elsewhere need it.",
    )
    decoding: SerializeAsAny[Decoding] = Field(
        default_factory=lambda: kinds()[DEFAULT].settings(), description="Decoding settings."
    )
    post_process: list[Step] = Field(
        default_factory=list,
        description="Steps applied to an output (not to a reference) before it is scored, in order.",
    )
    metrics: list[Metric] | None = Field(
        None,
        min_length=1,
        description="Scores, the first being the one models are compared by. None: the objective's.",
    )
    limit: int | None = Field(None, ge=1, description="Only so many examples, the first of the split. None: all.")
    truncation: bool = Field(False, description="Cut prompts that are too long for a model instead of refusing them.")
    resamples: int = Field(1000, ge=100, description="Bootstrap resamples behind each interval.")
    seed: int = Field(0, ge=0, description="Seed of the resamples.")

    @field_validator("metrics")
    @classmethod
    def _once(cls, metrics: list[str] | None) -> list[str] | None:
        if metrics is not None and len(set(metrics)) < len(metrics):
            raise ValueError("a metric is named twice")
        return metrics


def run(job: Job[Params]) -> dict[str, float]:
    from safetensors.numpy import save_file

    from tasks.evaluation.scores import about_model, estimate
    from tasks.metrics.bootstrap import replicates
    from tasks.metrics.direction import greater_is_better

    params, data, models = job.params, job.input("data"), job.inputs["models"]
    objectives = _objectives(models, params.objective)
    product = _product(job, objectives)
    metrics = params.metrics or objectives[models[0].stage].product_metrics
    product.require_packages(metrics)
    split = data.split or "test"
    requests, outputs, about = _produced(job, product, objectives, split)
    primary = metrics[0]
    scored: dict[str, Any] = {}
    predictions: dict[str, Any] = {}
    drawn: dict[str, Any] = {}
    for model in models:
        statistics = product.statistics(outputs[model.stage], requests, metrics)
        point, replicated = replicates(
            partial(product.metrics, statistics), len(requests), params.resamples, params.seed
        )
        described = {
            name: estimate(
                value,
                replicated[name],
                len(requests),
                higher_is_better=None if name in product.neutral else greater_is_better(name),
            )
            for name, value in point.items()
        }
        scored[model.stage] = about_model(model, described, about[model.stage]["parameters"])
        predictions |= {f"{model.stage}/{name}": values for name, values in statistics.items()}
        drawn |= {f"{model.stage}/{name}": values for name, values in replicated.items()}
    scores = {
        "objective": objectives[models[0].stage].name,
        "primary_metric": primary,
        "greater_is_better": True,
        "models": scored,
        "data": {"stage": data.stage, "split": split, "n": len(requests), "digest": data.manifest.digest},
        "labels": None,
        "baselines": product.baselines(requests, primary),
        "resamples": params.resamples,
        "seed": params.seed,
    }
    (job.output / "scores.json").write_text(json.dumps(scores, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    save_file(predictions, job.output / "predictions.safetensors")
    save_file(drawn, job.output / "replicates.safetensors")
    _record(job, product, requests, outputs, about)
    for sentence in product.warnings:
        job.warn(sentence)
    return {f"{primary} {name}": entry["metrics"][primary]["value"] for name, entry in scored.items()}


def _objectives(models: Sequence[InputArtifact], given: Objective | None) -> dict[str, Objective]:
    """How each model is asked. Raises StageError on a model that is listed twice or was trained for nothing."""
    from tasks.evaluation.scores import require_distinct
    from tasks.models.card import read_card

    require_distinct(models)
    found = {}
    for model in models:
        card = read_card(model.path)
        if given is None and card.settings is None:
            raise StageError(
                f"{model.stage!r} was trained for no objective here: how it is asked is not known",
                where="models",
                hint="Set `objective` to one whose models produce something, with the columns it reads.",
            )
        found[model.stage] = given if given is not None else card.objective
    return found


def _product(job: Job[Params], objectives: Mapping[str, Objective]) -> Product:
    """What all models produce. Raises StageError where they produce nothing, or not the same kind."""
    found = {name: product_of(objective, where="models") for name, objective in objectives.items()}
    kind = next(iter(found.values()))
    if other := next((name for name, its in found.items() if its is not kind), None):
        raise StageError(
            f"{other!r} and {next(iter(found))!r} produce different things and cannot be compared",
            where="models",
            hint="Score them in stages of their own.",
        )
    return kind(job.params.decoding, job.params.post_process)


def _produced(
    job: Job[Params], product: Product, objectives: Mapping[str, Objective], split: str
) -> tuple[list[Request], dict[str, list[Output]], dict[str, dict[str, Any]]]:
    """(requests, model -> outputs in frozen order, model -> its size and speed): one process a model, one at a time.

    Raises StageError where models are judged by different references.
    """
    import transformers

    from infra.launch.forked import forked

    params, models = job.params, job.inputs["models"]
    for objective in objectives.values():
        getattr(transformers, objective.auto_class)  # imported once, before forking
    make: dict[str, Callable[[], Any]] = {
        model.stage: partial(
            product.producer, model, job.input("data"), split, objectives[model.stage], job.execution,
            limit=params.limit, truncation=params.truncation, threads=job.cores,
        )
        for model in models
    }  # fmt: skip
    requests: list[Request] = []
    outputs: dict[str, list[Output]] = {}
    about: dict[str, dict[str, Any]] = {}
    with forked(make) as children:
        for turn, (name, child) in enumerate(children.items()):
            described = child.call("described")
            requests = requests or described.requests
            if [(r.name, r.reference) for r in described.requests] != [(r.name, r.reference) for r in requests]:
                raise StageError(
                    f"{name!r} and {next(iter(children))!r} would be judged by different references",
                    where="models",
                    hint="Set `objective`, so that all are asked alike, or judge them in stages of their own.",
                )
            rows: list[Output] = []
            seconds = 0.0
            for batch in range(described.batches):
                found, took = child.call("produce", batch)
                rows += found
                seconds += took
                job.progress(turn * described.batches + batch + 1, len(children) * described.batches)
            child.close()  # its memory is the next one's
            outputs[name] = sorted(rows, key=lambda output: output.place)
            size, unit = sum(output.size for output in rows), product.unit
            speed = {unit: size, "seconds": seconds, f"{unit}_per_second": size / seconds}
            about[name] = {"parameters": described.parameters, "device": described.device, **speed}
    return requests, outputs, about


def _record(
    job: Job[Params],
    product: Product,
    requests: Sequence[Request],
    outputs: Mapping[str, Sequence[Output]],
    about: Mapping[str, Mapping[str, Any]],
) -> None:
    """Evidence for people: every output as it was made, some of them side by side, and how fast it went."""
    with (job.records / "outputs.jsonl").open("w", encoding="utf-8") as file:
        for place, request in enumerate(requests):
            made = {model: rows[place].record() for model, rows in outputs.items()}
            line = {"id": request.name, "prompt": request.shown, "reference": request.reference, "outputs": made}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    samples = []
    for place in spread(len(requests), SHOWN):
        answers = {f"{model} writes": product.shown(rows[place]) for model, rows in outputs.items()}
        samples.append({"prompt": requests[place].shown, "reference": requests[place].reference, **answers})
    for file_name, content in (("samples.json", samples), ("speed.json", dict(about))):
        (job.records / file_name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


STAGE = Stage(kind="generate", version=1, makes="scores", params=Params, run=run, warm=True, exclusive=True)
