"""multitask: several objectives learned at once by one trunk, each with a head of its own.

What a task gains or loses by it is measured by `evaluate`: its `task_model` against its single training.
Evidence in `records/`: train.jsonl and validation.jsonl with the loss of each task, conflict.json (do the tasks pull
the trunk the same way, before and after), mixture.json (shares of the tasks), baselines.json, samples.json.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from infra.config_check import did_you_mean
from infra.execution import Execution
from tasks.objective import ObjectiveField
from tasks.stage import Fault, Input, Job, Stage, StageParams
from tasks.training.engine.deepspeed_config import training_faults
from tasks.training.tuning.fine_tuning import FineTuningParams, freeze_and_decay, open_model

if TYPE_CHECKING:
    from tasks.training.multitask.model import MultitaskModel
    from tasks.training.multitask.objective import Multitask, TaskFeatures


class Task(StageParams):
    """One of the objectives."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$", description="What its head and its metrics are called.")
    data: Annotated[str, Input("dataset", "tokens")] = Field(description="The data to learn from.")
    objective: ObjectiveField = Field(
        description="What is learned: the name of a file in `tasks/objectives/*/`, or {name: ..., and its options}."
    )
    weight: float = Field(
        1.0, ge=0, description="How often its loss counts. 0: nothing is learned from it; its head stays as it began."
    )


class Params(FineTuningParams):
    """Model, tasks, and how the tasks share each step.

    The backbone of `model` is the trunk; the names that `freeze` matches begin with `trunk.` or `heads.<task>.`.
    """

    tasks: list[Task] = Field(min_length=1, description="The tasks, in the order of the heads.")
    temperature: float = Field(
        1.0,
        gt=0,
        description="A task of n examples gets a share proportional to n^(1/temperature). 1: by size; large: even.",
    )
    weighting: Literal["fixed", "uncertainty"] = Field(
        "fixed",
        description="`fixed`: by each task's `weight`. `uncertainty`: learned (Kendall, Gal and Cipolla, 2018).",
    )
    uncertainty_rate: float = Field(
        1.0, gt=0, description="The learned weights have so many times the learning rate; only for `uncertainty`."
    )

    @model_validator(mode="after")
    def _together(self) -> Params:
        names = [task.name for task in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two tasks are called {twice[0]!r}: give each a name of its own")
        for task in self.tasks:
            if task.objective.examples_per_loss > 1:
                raise ValueError(
                    f"task {task.name!r}: {task.objective.name} has one loss for {task.objective.examples_per_loss} "
                    "examples, which a mixed batch would tear apart; train it by itself"
                )
        if self.weighting == "uncertainty" and any(task.weight != 1.0 for task in self.tasks):
            raise ValueError("`weighting: uncertainty` learns the weights: leave out `weight`")
        if not any(task.weight for task in self.tasks):
            raise ValueError("every task has weight 0: nothing is left to learn")
        if self.weighting == "fixed" and self.uncertainty_rate != 1.0:
            raise ValueError("`uncertainty_rate` is for `weighting: uncertainty`")
        if self.r_drop:
            raise ValueError("`r_drop` is not offered for several tasks: leave it out")
        task_of_metric, mark, _ = (self.watch or "").partition("/")
        if mark and task_of_metric not in names:
            raise ValueError(f"`watch`: no task {task_of_metric!r}; {did_you_mean(task_of_metric, names)}")
        if self.watch and not mark and self.watch != "loss":
            raise ValueError(f"`watch` is `loss` or `<task>/<metric>`, e.g. `{names[0]}/{self.watch}`")
        return self


def check(params: Params, execution: Execution) -> list[Fault]:
    """Beside what every training is checked for: the batch must hold an example of each task."""
    faults = training_faults(params, execution)
    if params.global_batch_size < len(params.tasks):
        message = f"{params.global_batch_size} examples a step cannot hold one of each of {len(params.tasks)} tasks"
        faults.append(Fault(("global_batch_size",), message))
    return faults


def run(job: Job[Params]) -> dict[str, float]:
    from dataclasses import replace
    from functools import partial

    from tasks.models.card import ModelCard
    from tasks.models.loading import count_parameters
    from tasks.models.trained_for import bound_to
    from tasks.training.loop.features import train_and_validation
    from tasks.training.loop.train import train
    from tasks.training.multitask.files import save_multitask
    from tasks.training.multitask.gradient_conflict import measured_conflict
    from tasks.training.multitask.mixture import MixtureSampler, batch_counts
    from tasks.training.multitask.model import MultitaskModel
    from tasks.training.multitask.objective import Multitask, TaskFeatures

    params, source = job.params, job.input("model").path
    models, cards, bound, learned, watched = {}, {}, {}, {}, {}
    for task, data in zip(params.tasks, job.inputs["tasks"], strict=True):
        objective = bound_to(task.objective, source, limit=params.max_length)
        learned[task.name], watched[task.name] = train_and_validation(objective, data)
        head = objective.head(data)
        models[task.name] = open_model(source, objective, params, head=head, stage=job.name)
        cards[task.name] = ModelCard.of(objective, objective.processor.limit, head)
        config = models[task.name].config
        bound[task.name] = cards[task.name].objective.bound(objective.processor, config=config)
    model = MultitaskModel(models, learned_weights=params.weighting == "uncertainty")
    features = TaskFeatures(learned)
    together = Multitask(
        tasks=bound,
        weights={t.name: t.weight for t in params.tasks} if params.weighting == "fixed" else None,
        fillers={name: one.noised(learned[name][0], 0) for name, one in bound.items()},
        labels={name: card.labels for name, card in cards.items()},
    )
    _, tuning = freeze_and_decay(model, params)
    if params.weighting == "uncertainty":
        tuning = replace(tuning, rates={"log_variances.values": params.uncertainty_rate})
    silent = tuple(f"heads.{task.name}." for task in params.tasks if not task.weight)
    for name, parameter in model.named_parameters():
        if name.startswith(silent):
            parameter.requires_grad_(False)  # a head that learns nothing must not decay either
    counts = batch_counts(features.counts, params.temperature, params.global_batch_size)
    before = measured_conflict(model, together, learned) if job.rank == 0 else {}
    result = train(
        job,
        model,
        together,
        features,
        TaskFeatures(watched),
        params,
        tuning=tuning,
        rebuild=partial(MultitaskModel.like, model),
        sampler=partial(MixtureSampler.of, features.counts, counts, params.seed),
        validate=together.validated,
    )
    trained: Any = result.model
    metrics = {**result.metrics(), "parameters": float(count_parameters(trained))}
    if job.rank:
        return metrics
    save_multitask(trained, job.output, processor=next(iter(bound.values())).processor, cards=cards)
    after = measured_conflict(trained, together, learned)
    _write(job, "conflict.json", {"before": before, "after": after})
    _write(job, "mixture.json", _mixture(params, features.counts, counts))
    metrics |= {"conflicting": after["conflicting"]}
    return metrics | _tell(job, trained, together, features, TaskFeatures(watched), result.seen)


def _mixture(params: Params, sizes: list[int], counts: list[int]) -> dict[str, Any]:
    from tasks.training.multitask.mixture import shares

    wanted = shares(sizes, params.temperature)
    return {
        task.name: {"examples": size, "share": share, "in_batch": count, "weight": task.weight}
        for task, size, share, count in zip(params.tasks, sizes, wanted, counts, strict=True)
    }


def _tell(
    job: Job[Params],
    model: MultitaskModel,
    objective: Multitask,
    learned: TaskFeatures,
    watched: TaskFeatures,
    seen: list[int],
) -> dict[str, float]:
    """Write baselines and samples of every task with held-out examples; returns the former, to be metrics."""
    values: dict[str, float] = {}
    samples: list[dict[str, str]] = []
    first = 0
    for task, own in objective.tasks.items():
        met = [learned.parts[task][i - first] for i in seen if first <= i < first + len(learned.parts[task])]
        first += len(learned.parts[task])
        if not watched.parts[task]:
            continue
        values |= {f"{task}/{n}": v for n, v in own.baselines(met, watched.parts[task]).items()}
        own_samples = own.shown(model.tasks()[task], watched.parts[task])
        samples += [{"task": task, **sample} for sample in own_samples]
    if values:
        _write(job, "baselines.json", {"metric": "main metric of the task", "values": values})
        _write(job, "samples.json", samples)
    return {f"baseline_{name}": value for name, value in values.items()}


def _write(job: Job[Params], name: str, value: Any) -> None:
    import json

    (job.records / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


STAGE = Stage(
    kind="multitask",
    version=2,
    makes="multitask_model",
    params=Params,
    run=run,
    warm=True,
    distributed=True,
    check=check,
)
