"""The lm-evaluation-harness (Gao et al., 2021) on one model, with tasks of a local folder and without a network.

For a forked child: it changes its working directory, so that data files in task files are relative to the folder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from infra.config_check import did_you_mean
from infra.errors import StageError
from infra.execution import Execution

if TYPE_CHECKING:
    from tasks.stage import InputArtifact

SAID = ("doc_id", "doc_hash", "target", "filtered_resps", "filter")


@dataclass(frozen=True)
class Settings:
    """Arguments of `lm_eval.simple_evaluate`, by their names there; `resamples`: its `bootstrap_iters`."""

    num_fewshot: int | None
    apply_chat_template: bool
    batch_size: int
    limit: int | None
    resamples: int
    seed: int


@dataclass(frozen=True)
class Measure:
    """One figure of the harness. `each`: float64 [N], its value on each example, where it is their mean; else None."""

    name: str
    value: float
    stderr: float | None
    n: int
    higher_is_better: bool
    each: npt.NDArray[np.float64] | None


def require_harness() -> None:
    """Raises StageError if the harness is not installed."""
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise StageError(
            "lm_eval is not installed", where="harness", hint="pip install 'forgeline[harness]'."
        ) from error


class Harness:
    """A model artifact, and the tasks it is asked."""

    def __init__(
        self,
        model: InputArtifact,
        folder: Path,
        names: Sequence[str] | None,
        settings: Settings,
        execution: Execution,
        *,
        cache: Path,
        threads: int,
    ) -> None:
        _offline(cache)
        import torch
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        from tasks.models.card import read_card
        from tasks.training.engine.ranks import training_device

        torch.set_num_threads(threads)
        self.settings = settings
        os.chdir(folder)
        self.manager = TaskManager(include_path=str(folder), include_defaults=False)
        self.names = _chosen(sorted(self.manager.all_tasks), sorted(self.manager.all_subtasks), names)
        device = str(training_device(execution))
        self.model = HFLM(
            pretrained=str(model.path),
            device=device,
            batch_size=settings.batch_size,
            max_length=read_card(model.path).max_length,
            trust_remote_code=False,
        )

    def evaluate(self) -> tuple[list[Measure], dict[str, Any], list[dict[str, Any]], int]:
        """(figures, what the harness says in its own words, a row for each answer, parameters of the model)."""
        import lm_eval

        settings = self.settings
        evaluate: Any = lm_eval.simple_evaluate
        try:
            found = evaluate(
                model=self.model,
                tasks=self.names,
                task_manager=self.manager,
                num_fewshot=settings.num_fewshot,
                apply_chat_template=settings.apply_chat_template,
                limit=settings.limit,
                bootstrap_iters=settings.resamples,
                random_seed=settings.seed,
                numpy_random_seed=settings.seed,
                torch_random_seed=settings.seed,
                fewshot_random_seed=settings.seed,
            )
        except Exception as error:
            # Task files hold templates and functions of their own: anything can go wrong in them.
            raise StageError(
                f"the harness ended with {type(error).__name__}: {error}",
                where="tasks",
                hint="Data files in a task file are relative to the folder of `tasks`; nothing is downloaded.",
            ) from error
        measures = [measure for task in sorted(found["results"]) for measure in _measures(task, found)]
        described = {name: found[name] for name in ("results", "n-shot", "versions", "n-samples", "lm_eval_version")}
        rows = [
            {"task": task, **{key: row[key] for key in SAID}, **{metric: row[metric] for metric in row["metrics"]}}
            for task, samples in sorted(found["samples"].items())
            for row in samples
        ]
        return measures, described, rows, int(self.model.model.num_parameters())


def _measures(task: str, found: dict[str, Any]) -> list[Measure]:
    """Of one task or group. `acc,none` is called acc@<task>; with a filter `exact_match,strict@<task>`."""
    results = found["results"][task]
    kept = []
    for key, value in results.items():
        metric, comma, chosen = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = results.get(f"{metric}_stderr,{chosen}")
        rows = [row for row in found["samples"].get(task, ()) if row["filter"] == chosen and metric in row["metrics"]]
        single = [row[metric] for row in rows]
        numbers = bool(single) and all(isinstance(one, int | float | np.number) for one in single)
        each = np.array(single, np.float64) if numbers else None
        if each is not None and not np.isclose(each.mean(), value, rtol=1e-9, atol=1e-12):
            each = None  # no mean of its examples: F1, a corpus score
        kept.append(
            Measure(
                name=f"{metric}@{task}" if chosen == "none" else f"{metric},{chosen}@{task}",
                value=float(value),
                stderr=float(stderr) if isinstance(stderr, int | float) else None,
                n=int(results.get("sample_len", len(rows))),
                higher_is_better=bool(found["higher_is_better"].get(task, {}).get(metric, True)),
                each=each,
            )
        )
    return kept


def _chosen(known: Sequence[str], tasks: Sequence[str], names: Sequence[str] | None) -> list[str]:
    if not tasks:
        raise StageError(
            "the folder has no task", where="tasks", hint="A task is a YAML file with `task: NAME` and its dataset."
        )
    for name in names or ():
        if name not in known:
            raise StageError(f"no task {name!r} in the folder; {did_you_mean(name, known)}", where="names")
    return list(names) if names is not None else list(tasks)


def _offline(cache: Path) -> None:
    """Nothing is fetched, and what is prepared goes to the job's own folder: the same files are read each time."""
    os.environ |= {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(cache)}
    import datasets
    import huggingface_hub.constants

    # They have read the environment already where something imported them before.
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    datasets.config.HF_HUB_OFFLINE = True
    datasets.config.HF_DATASETS_CACHE = cache
