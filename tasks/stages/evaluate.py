"""evaluate: models as they ship, side by side on the same frozen examples.

Payload: `scores.json`, `predictions.safetensors` (`<model>/<array>`, one row an example, in frozen order) and
`replicates.safetensors` (`<model>/<metric>`, one value a bootstrap resample, the same resamples for every model: what a
gate compares). Metrics of `slices` (`tasks/evaluation/slices.py`) and `perturbations`
(`tasks/evaluation/perturbations.py`) lie beside those of all examples; scores.json says how large each slice is.
Evidence in `records/`: `latency.json` (every single time), `samples.json`, `misclassified.json`.

Latency is of one forward pass over the first examples, tokenized and padded: p50, p95 and p99 in ms, and `spread`, the
middle half of the times over the median. Memory is what loading and running the model adds to the libraries; size is
that of weight and graph files. MB are 10^6 bytes.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from infra.errors import StageError
from tasks.data.dataset.layout import has_split
from tasks.evaluation.champion import NAME, SINCE
from tasks.evaluation.slices import Slicing
from tasks.objective import PerturbationField
from tasks.stage import Input, InputArtifact, Job, Stage, StageParams

if TYPE_CHECKING:
    from tasks.objective import Objective

SHOWN_WRONG = 24
Name = Annotated[str, Field(pattern=r"^[\w.-]+$")]


class Latency(StageParams):
    """How latency is measured."""

    batch_sizes: list[Annotated[int, Field(ge=1)]] = Field(
        default_factory=lambda: [1], min_length=1, description="Examples in a pass."
    )
    repeats: int = Field(50, ge=2, description="Passes timed at each batch size.")
    threads: int = Field(1, ge=1, description="CPU threads a model may use.")
    max_seconds: float = Field(0.5, gt=0, description="A model's time at one batch size, after which repeats stop.")


class Params(StageParams):
    """Models, data and metrics of an evaluation."""

    models: Annotated[list[str], Input("model", "onnx", trained=True)] = Field(
        min_length=1, description="Models, each as it ships."
    )
    champion: Annotated[str | None, Input("model", "onnx", champion=True)] = Field(
        None,
        description="Ref of what is in production, judged beside them as `champion` once there is one; on what it was "
        "judged on before (slice `since=known`) and on what is new (`since=new`).",
    )
    data: Annotated[str, Input("dataset", "tokens")] = Field(
        description="Data, with the split (`functions.test`); default test."
    )
    latency: Latency = Field(default_factory=lambda: Latency(), description="Latency measurement.")
    resamples: int = Field(1000, ge=100, description="Bootstrap resamples behind each interval.")
    seed: int = Field(0, ge=0, description="Seed of the resamples, and of what perturbations change.")
    slices: dict[Name, Slicing] = Field(
        default_factory=dict, description="Parts of the examples that are judged by themselves too."
    )
    perturbations: dict[Name, PerturbationField] = Field(
        default_factory=dict, description="Changes to the texts, on which every model is judged as well."
    )

    @model_validator(mode="after")
    def _names_of_the_champion(self) -> Params:
        if self.champion is not None and NAME in self.models:
            raise ValueError(f"the model of the ref is called {NAME!r} here; call the stage in `models` otherwise")
        if self.champion is not None and SINCE in self.slices:
            raise ValueError(f"a champion brings slices called {SINCE!r}; call yours otherwise")
        return self


def run(job: Job[Params]) -> dict[str, float]:
    from safetensors.numpy import save_file

    from tasks.evaluation.champion import about, judged_before, same_label_map
    from tasks.evaluation.comparison import Timing, compare
    from tasks.evaluation.scores import scores_of
    from tasks.evaluation.slices import read_masks

    params, data, models = job.params, job.input("data"), list(job.inputs["models"])
    split = data.split or "test"
    champion = next(iter(job.inputs.get(NAME, [])), None)
    if champion is not None:
        same_label_map(champion, models[0])
        models.append(replace(champion, stage=NAME))
    chosen, labels = _agree(models)
    masks = read_masks(data, split, params.slices)
    since = None
    if champion is not None and data.manifest.type == "dataset":
        since = judged_before(job.store, champion.manifest, data, split)
        masks[SINCE] = since.masks
    _import_for_children(models)
    latency = params.latency
    measured, baselines = compare(
        models,
        data,
        split,
        timing=Timing(tuple(latency.batch_sizes), latency.repeats, latency.threads, latency.max_seconds * 1e3),
        resamples=params.resamples,
        seed=params.seed,
        cores=max(1, len(os.sched_getaffinity(0)) // latency.threads),
        has_train=split != "train" and has_split(data.path, data.manifest.type, "train"),
        masks=masks,
        perturbations=params.perturbations,
        labels=labels,
        progress=lambda done, total: job.progress(done, total),
    )
    artifacts = {model.stage: model for model in models}
    scores = scores_of(chosen, artifacts, measured, masks)
    scores["data"] = {"stage": data.stage, "split": split, "n": scores.pop("n"), "digest": data.manifest.digest}
    scores |= {"labels": labels, "baselines": baselines, "resamples": params.resamples, "seed": params.seed}
    if params.champion is not None:
        challengers = [model.manifest for model in job.inputs["models"]]
        scores[NAME] = about(job.store, params.champion, champion.manifest if champion else None, challengers, since)
    if masks:
        slicings = {SINCE: Slicing(by=NAME, min_examples=1), **params.slices}
        scores["slices"] = {
            name: {
                **slicings[name].model_dump(exclude_defaults=True),
                "min_examples": slicings[name].min_examples,
                "n": {one: int(mask.sum()) for one, mask in slices.items()},
            }
            for name, slices in masks.items()
        }
    if params.perturbations:
        scores["perturbations"] = {
            name: one.model_dump(exclude_defaults=True) for name, one in params.perturbations.items()
        }
    (job.output / "scores.json").write_text(json.dumps(scores, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    tensors = {f"{name}/{key}": array for name, m in measured.items() for key, array in m.predictions.items()}
    save_file(tensors, job.output / "predictions.safetensors")
    drawn = {f"{name}/{key}": array for name, m in measured.items() for key, array in m.replicates.items()}
    save_file(drawn, job.output / "replicates.safetensors")
    _record(job, measured, data, split, labels, chosen)
    primary = {name: m.point[chosen.primary_metric] for name, m in measured.items()}
    return {f"{chosen.primary_metric} {name}": value for name, value in primary.items() if value == value}


def _agree(models: list[InputArtifact]) -> tuple[Objective, list[str] | None]:
    """The objective and labels all models share. Raises StageError where they do not.

    Options that only training sees may differ, and so may the order in which models number the classes: the first one's
    numbers them for all. That the data have the same is seen by each model's process.
    """
    from tasks.evaluation.scores import require_distinct
    from tasks.metrics.class_names import same_labels
    from tasks.models.card import read_card

    require_distinct(models)
    cards = {model.stage: read_card(model.path) for model in models}
    objectives = {name: card.objective for name, card in cards.items()}
    first, *rest = [one.model_dump(exclude=set(one.training_options)) for one in objectives.values()]
    if any(other != first for other in rest):
        listed = ", ".join(
            f"{name}: {one.model_dump(exclude_defaults=True) | {'name': one.name}}" for name, one in objectives.items()
        )
        raise StageError(f"the models were trained for different objectives ({listed})", where="models")
    for name, card in cards.items():
        same_labels(repr(name), card.labels, cards[models[0].stage].labels, where="models")
    return objectives[models[0].stage], cards[models[0].stage].labels


def _import_for_children(models: list[InputArtifact]) -> None:
    """Import once, before forking, what every child would otherwise import for itself. No torch operation runs here."""
    import transformers
    from transformers import PreTrainedTokenizerFast  # noqa: F401

    from tasks.models.card import read_card
    from tasks.models.runtime import import_runtime

    for model in models:
        import_runtime(model.manifest.type, read_card(model.path).objective.auto_class)
        config = json.loads((model.path / "config.json").read_text(encoding="utf-8"))
        for name in config.get("architectures") or []:
            getattr(transformers, name, None)


def _record(
    job: Job[Params],
    measured: dict[str, Any],
    data: InputArtifact,
    split: str,
    labels: list[str] | None,
    objective: Objective,
) -> None:
    """Evidence for people: every latency, what models said, and what they got wrong."""
    from tasks.evaluation.scores import misclassified

    times = {name: {str(size): t for size, t in m.latency_ms.items()} for name, m in measured.items()}
    samples = {name: m.samples for name, m in measured.items() if m.samples}
    evidence: dict[str, Any] = {"latency.json": times, "samples.json": samples}
    if data.manifest.type == "dataset":
        from tasks.data.dataset.split import read_split

        table = read_split(data, split, columns=("id", "text"))
        predictions = {name: m.predictions for name, m in measured.items()}
        evidence["misclassified.json"] = misclassified(
            predictions, table["id"], table["text"], labels, SHOWN_WRONG, partial(objective.pictures, data, split)
        )
    for name, content in evidence.items():
        (job.records / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


STAGE = Stage(kind="evaluate", version=3, makes="scores", params=Params, run=run, warm=True, exclusive=True)
