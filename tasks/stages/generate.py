"""generate: models write, side by side on the same examples, and what they wrote is scored against references.

Payload, laid out as `evaluate` lays it out, so that gates and reports read it: `scores.json`,
`predictions.safetensors` (`<model>/<array>`, what a score is made of, one row an example), `replicates.safetensors`
(`<model>/<metric>`, the same resamples for every model). Nothing in it depends on the clock. Evidence in `records/`:
`outputs.jsonl` (every output of every model), `samples.json` (some, for the report), `speed.json` (tokens a second).

Every model has `length_ratio`, the characters of its outputs over those of the references, and `unfinished`, the share
of outputs that `max_new_tokens` cut off. Baseline `copy` answers with the prompt's own text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from infra.errors import StageError
from tasks.generation.text.decoding import Decoding
from tasks.generation.text.post_process import PostProcess, Step
from tasks.metrics.written_text import TextMetric
from tasks.objective import ObjectiveField, spread
from tasks.stage import Input, InputArtifact, Job, Stage, StageParams

if TYPE_CHECKING:
    from tasks.generation.text.writer import Output
    from tasks.objective import Objective

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
    decoding: Decoding = Field(default_factory=lambda: Decoding(), description="Decoding settings.")
    post_process: list[Step] = Field(
        default_factory=list,
        description="Steps applied to an output (not to a reference) before it is scored, in order.",
    )
    metrics: list[TextMetric] | None = Field(
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
    from tasks.metrics.written_text import require_packages, text_metrics

    params, data, models = job.params, job.input("data"), job.inputs["models"]
    objectives = _objectives(models, params.objective)
    metrics = params.metrics or objectives[models[0].stage].text_metrics
    require_packages(metrics)
    process = PostProcess(params.post_process)
    examples, outputs, about = _written(job, objectives, data.split or "test")
    primary = metrics[0]
    scored: dict[str, Any] = {}
    predictions: dict[str, Any] = {}
    drawn: dict[str, Any] = {}
    for model in models:
        statistics = _statistics(outputs[model.stage], examples, metrics, process)
        point, replicated = replicates(partial(text_metrics, statistics), len(examples), params.resamples, params.seed)
        described = {
            name: estimate(
                value,
                replicated[name],
                len(examples),
                higher_is_better=_higher_is_better(name, greater_is_better(name)),
            )
            for name, value in point.items()
        }
        scored[model.stage] = about_model(model, described, about[model.stage]["parameters"])
        predictions |= {f"{model.stage}/{name}": values for name, values in statistics.items()}
        drawn |= {f"{model.stage}/{name}": values for name, values in replicated.items()}
    split = data.split or "test"
    scores = {
        "objective": objectives[models[0].stage].name,
        "primary_metric": primary,
        "greater_is_better": True,
        "models": scored,
        "data": {"stage": data.stage, "split": split, "n": len(examples), "digest": data.manifest.digest},
        "labels": None,
        "baselines": {"copy": _copied(examples, primary, process)},
        "resamples": params.resamples,
        "seed": params.seed,
    }
    (job.output / "scores.json").write_text(json.dumps(scores, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    save_file(predictions, job.output / "predictions.safetensors")
    save_file(drawn, job.output / "replicates.safetensors")
    _record(job, examples, outputs, about, process)
    if process.late:
        job.warn(
            f"in {len(process.late)} outputs a pattern of `post_process` took too long to find an answer; they "
            "count as without one"
        )
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
                hint="Set `objective` to one that writes text, with the columns it reads.",
            )
        found[model.stage] = given if given is not None else card.objective
    return found


Example = tuple[str, str, str]
"""Its name, the prompt for people, the reference."""


def _written(
    job: Job[Params], objectives: Mapping[str, Objective], split: str
) -> tuple[list[Example], dict[str, list[Output]], dict[str, dict[str, Any]]]:
    """(examples, model -> outputs in frozen order, model -> its size and speed): one process a model, one at a time.

    Raises StageError where models are judged by different references.
    """
    import transformers

    from infra.launch.forked import forked
    from tasks.generation.text.writer import Writer

    params, models = job.params, job.inputs["models"]
    for objective in objectives.values():
        getattr(transformers, objective.auto_class)  # imported once, before forking
    make: dict[str, Callable[[], Any]] = {
        model.stage: partial(
            Writer, model, job.input("data"), split, objectives[model.stage], params.decoding, job.execution,
            limit=params.limit, truncation=params.truncation, threads=job.cores,
        )
        for model in models
    }  # fmt: skip
    examples: list[Example] = []
    outputs: dict[str, list[Output]] = {}
    about: dict[str, dict[str, Any]] = {}
    with forked(make) as children:
        for turn, (name, child) in enumerate(children.items()):
            described = child.call("described")
            examples = examples or described["examples"]
            if [(key, reference) for key, _, reference in described["examples"]] != [
                (key, reference) for key, _, reference in examples
            ]:
                raise StageError(
                    f"{name!r} and {next(iter(children))!r} would be judged by different references",
                    where="models",
                    hint="Set `objective`, so that all are asked alike, or judge them in stages of their own.",
                )
            rows: list[Output] = []
            seconds = 0.0
            for batch in range(described["batches"]):
                found, took = child.call("write", batch)
                rows += found
                seconds += took
                job.progress(turn * described["batches"] + batch + 1, len(children) * described["batches"])
            child.close()  # its memory is the next one's
            outputs[name] = sorted(rows, key=lambda output: output.place)
            tokens = sum(output.tokens for output in rows)
            speed = {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}
            about[name] = {"parameters": described["parameters"], "device": described["device"], **speed}
    return examples, outputs, about


def _statistics(
    outputs: Sequence[Output], examples: Sequence[Example], metrics: Sequence[str], process: Callable[[str], str]
) -> dict[str, Any]:
    import numpy as np

    from tasks.metrics.written_text import text_statistics

    texts = [process(output.text) for output in outputs]
    found = text_statistics(texts, [reference for _, _, reference in examples], metrics)
    return {**found, "unfinished": np.array([not output.finished for output in outputs], np.float64)}


def _higher_is_better(name: str, higher_is_better: bool) -> bool | None:
    return None if name == "length_ratio" else higher_is_better  # 1 is best


def _copied(examples: Sequence[Example], metric: str, process: Callable[[str], str]) -> float:
    """The score of answering every prompt with its own text."""
    import numpy as np

    from tasks.metrics.written_text import text_metrics, text_statistics

    texts = [process(text) for _, text, _ in examples]
    found = text_statistics(texts, [reference for _, _, reference in examples], [metric])
    return float(text_metrics(found, np.ones((1, len(examples))))[metric][0])


def _record(
    job: Job[Params],
    examples: Sequence[Example],
    outputs: Mapping[str, Sequence[Output]],
    about: Mapping[str, Mapping[str, Any]],
    process: Callable[[str], str],
) -> None:
    """Evidence for people: every output as it was written, some of them side by side, and how fast it went."""

    with (job.records / "outputs.jsonl").open("w", encoding="utf-8") as file:
        for place, (name, text, reference) in enumerate(examples):
            written = {
                model: {"text": rows[place].text, "tokens": rows[place].tokens, "finished": rows[place].finished}
                for model, rows in outputs.items()
            }
            line = {"id": name, "prompt": text, "reference": reference, "outputs": written}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    samples = []
    for place in spread(len(examples), SHOWN):
        _, text, reference = examples[place]
        answers = {f"{model} writes": process(rows[place].text) for model, rows in outputs.items()}
        samples.append({"prompt": text, "reference": reference, **answers})
    for file_name, content in (("samples.json", samples), ("speed.json", dict(about))):
        (job.records / file_name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


STAGE = Stage(kind="generate", version=1, makes="scores", params=Params, run=run, warm=True, exclusive=True)
