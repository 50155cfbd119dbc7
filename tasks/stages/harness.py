"""harness: task files of the lm-evaluation-harness, asked of models side by side.

`tasks` is a folder of the harness's YAML files and the data they name (`dataset_path: json` with files relative to the
folder); all that lies in it enters the key. Nothing is downloaded. A task file may name functions of a Python file
beside it (`!function`), which run as the harness runs them.

Payload as `evaluate` has it: `scores.json` with metrics called `acc@<task>`, their standard errors as the harness gives
them, and `replicates.safetensors`, the bootstrap of those that are means over examples. Evidence in `records/`:
`results.json`, the harness's own words, and `outputs.jsonl`, every answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from infra import source_files
from infra.config_check import did_you_mean
from infra.errors import StageError
from infra.keys import digest
from infra.sources_read import SourceFile, snapshot
from tasks.evaluation.harness_files import require_inside
from tasks.stage import Input, InputArtifact, Job, Located, Stage, StageParams

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from tasks.evaluation.lm_harness import Measure


class Params(StageParams):
    """Models, and tasks of the lm-evaluation-harness."""

    models: Annotated[list[str], Input("model")] = Field(min_length=1, description="Language models.")
    tasks: Annotated[str, Located()] = Field(description="Folder with task files and their data.")
    names: list[str] | None = Field(None, min_length=1, description="Tasks and groups of the folder. None: all tasks.")
    num_fewshot: int | None = Field(None, ge=0, description="Examples shown before a question. None: as the task says.")
    apply_chat_template: bool = Field(False, description="Ask through the tokenizer's chat template.")
    batch_size: int = Field(8, ge=1, description="Requests answered at once.")
    limit: int | None = Field(None, ge=1, description="Only so many examples of each task, the first. None: all.")
    primary: str | None = Field(
        None, description="Metric the models are compared by, e.g. `acc@arc`. None: the first of the first task."
    )
    resamples: int = Field(1000, ge=100, description="Bootstrap resamples behind each interval.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the resamples and of the harness.")


def sources(params: Params) -> list[SourceFile]:
    """Every file but hidden ones and caches. Raises StageError where one cannot be read or names others."""
    folder = Path(params.tasks)
    try:
        found = _files(folder)
        require_inside(folder, found)
        digests = source_files.digests([source_files.local(path) for path in found])
    except OSError as error:
        raise StageError(f"cannot read {error.filename}: {error.strerror}", where="tasks") from error
    if not found:
        raise StageError(f"{params.tasks} has no files", where="tasks", hint="Name a folder of task files.")
    return [SourceFile(str(path.relative_to(folder)), sha) for path, sha in zip(found, digests, strict=True)]


def _files(folder: Path) -> list[Path]:
    def counts(path: Path) -> bool:
        parts = path.relative_to(folder).parts
        return path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in parts)

    return sorted(path for path in folder.rglob("*") if counts(path))


def run(job: Job[Params]) -> dict[str, float]:
    from safetensors.numpy import save_file

    from infra.launch.forked import forked
    from tasks.evaluation.lm_harness import Harness, Settings, require_harness
    from tasks.evaluation.scores import about_model

    require_harness()
    params, models = job.params, job.inputs["models"]
    _check(models)
    folder = (job.scratch / "tasks").resolve()
    read = snapshot({str(path.relative_to(params.tasks)): path for path in _files(Path(params.tasks))}, folder)
    job.has_read(read)
    listed = [[file.path, file.sha256] for file in read]
    settings = Settings(
        params.num_fewshot, params.apply_chat_template, params.batch_size, params.limit, params.resamples, params.seed
    )
    given: dict[str, Any] = {"cache": job.scratch / "datasets", "threads": job.cores}
    make: dict[str, Callable[[], Any]] = {
        model.stage: partial(Harness, model, folder, params.names, settings, job.execution, **given) for model in models
    }
    scored: dict[str, Any] = {}
    predictions: dict[str, Any] = {}
    drawn: dict[str, Any] = {}
    results: dict[str, Any] = {}
    measures: list[Measure] = []
    with forked(make) as children, (job.records / "outputs.jsonl").open("w", encoding="utf-8") as answers:
        for done, model in enumerate(models, 1):
            child = children[model.stage]
            measures, results[model.stage], rows, parameters = child.call("evaluate")
            child.close()  # its memory is the next one's
            answers.writelines(json.dumps({"model": model.stage, **row}, default=float) + "\n" for row in rows)
            estimated = {}
            for measure in measures:
                estimated[measure.name], values = _estimate(measure, params)
                if values is not None and measure.each is not None:
                    predictions[f"{model.stage}/{measure.name}"] = measure.each
                    drawn[f"{model.stage}/{measure.name}"] = values
            scored[model.stage] = about_model(model, estimated, parameters)
            job.progress(done, len(models))
    primary = _primary([measure.name for measure in measures], params.primary)
    sizes = {measure.name.partition("@")[2]: measure.n for measure in measures}
    scores = {
        "objective": "harness",
        "primary_metric": primary,
        "greater_is_better": next(measure.higher_is_better for measure in measures if measure.name == primary),
        "models": scored,
        "data": {"stage": ", ".join(sizes), "split": None, "n": sum(sizes.values()), "digest": digest(listed)},
        "labels": None,
        "baselines": {},
        "resamples": params.resamples,
        "seed": params.seed,
    }
    (job.output / "scores.json").write_text(json.dumps(scores, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    save_file(predictions, job.output / "predictions.safetensors")
    save_file(drawn, job.output / "replicates.safetensors")
    for name, content in (("results.json", results), ("sources.json", listed)):
        (job.records / name).write_text(json.dumps(content, indent=1, default=float) + "\n", encoding="utf-8")
    return {f"{primary} {name}": entry["metrics"][primary]["value"] for name, entry in scored.items()}


def _check(models: list[InputArtifact]) -> None:
    """Raises StageError on a model that is listed twice, or that predicts no text."""
    from tasks.evaluation.scores import require_distinct
    from tasks.models.card import read_card

    require_distinct(models)
    for model in models:
        card = read_card(model.path)
        if card.settings is not None and card.objective.produces != "text":
            raise StageError(
                f"objective {card.objective.name} writes no text, and the harness asks for it",
                where=model.stage,
                hint="It takes models of objectives that `generate` takes too.",
            )


def _estimate(measure: Measure, params: Params) -> tuple[dict[str, Any], npt.NDArray[np.float64] | None]:
    """(the metric as scores.json has it, its value on each resample where it is a mean over examples).

    Elsewhere the interval is 1.96 of the harness's standard errors to each side.
    """
    from tasks.evaluation.scores import estimate
    from tasks.metrics.bootstrap import replicates

    each = measure.each
    if each is None:
        reach = 1.96 * (measure.stderr or 0.0)
        bounds = {"low": measure.value - reach, "high": measure.value + reach}
        estimated = {"value": measure.value, **bounds, "n": measure.n, "greater_is_better": measure.higher_is_better}
        return {**estimated, "stderr": measure.stderr}, None
    _, drawn = replicates(
        lambda weights: {"mean": weights @ each / weights.sum(1)}, len(each), params.resamples, params.seed
    )
    estimated = estimate(measure.value, drawn["mean"], measure.n, higher_is_better=measure.higher_is_better)
    return {**estimated, "stderr": measure.stderr}, drawn["mean"]


def _primary(names: list[str], given: str | None) -> str:
    if not names:
        raise StageError("the tasks have no figure", where="tasks", hint="Give them a `metric_list`.")
    if given is not None and given not in names:
        raise StageError(f"no metric {given!r}; {did_you_mean(given, names)}", where="primary")
    return given if given is not None else names[0]


STAGE = Stage(
    kind="harness", version=1, makes="scores", params=Params, run=run, warm=True, exclusive=True, sources=sources
)
