"""One objective through the stages: finetune, distill, export, quantize, evaluate, gate."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.models.card import ModelCard, write_card
from tasks.stage import stages

WORDS = ("red", "green", "blue", "apple", "pear", "plum", "dog", "cat", "cow", "run", "sit", "eat")


def dataset(folder: Path, columns: Mapping[str, Sequence[Any]], labels: list[str] | None = None) -> Path:
    """A `dataset` payload: of every five rows three train, one validates, one tests. `id` and `group` are the place."""
    folder.mkdir(parents=True)
    count = len(next(iter(columns.values())))
    names = [f"row{i:03}" for i in range(count)]
    table = pa.table({"id": names, "group": names, **({} if "text" in columns else {"text": [""] * count}), **columns})
    sizes = {}
    for split, left in (("train", (2, 3, 4)), ("validation", (0,)), ("test", (1,))):
        part = table.take([i for i in range(count) if i % 5 in left])
        (folder / split).mkdir()
        pq.write_table(part, folder / split / "0.parquet")
        sizes[split] = part.num_rows
    about = {"splits": sizes, "labels": labels, "columns": table.column_names}
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder


def base(folder: Path, tokenizer: Path, model: Any, max_length: int = 32) -> Path:
    """A `model` payload that nobody has trained for anything."""
    model.save_pretrained(folder)
    for path in tokenizer.iterdir():
        shutil.copy(path, folder)
    write_card(folder, ModelCard(None, max_length))
    return folder


def go(
    jobs: ModuleType,
    folder: Path,
    objective: dict[str, Any],
    model: Path,
    data: Path,
    *,
    finetune: dict[str, Any],
    distill: dict[str, Any],
    require: list[dict[str, Any]],
) -> dict[str, Any]:
    """stage -> its metrics; `scores` and `verdict`: what evaluate and gate wrote. The outputs lie under `folder`."""
    examples = jobs.artifact(data, "dataset", stage="data")
    found: dict[str, Any] = {}

    def run(name: str, kind: str, given: dict[str, Any], **inputs: Any) -> Path:
        job = jobs.make_job(folder / name, stages()[kind].params.model_validate(given), inputs, name=name)
        found[name] = stages()[kind].run(job)
        return Path(job.output)

    def of(path: Path, type: str) -> Any:
        return jobs.artifact(path, type, stage=path.parent.name)

    taught = {"model": "base", "data": "data", "objective": objective, "global_batch_size": 8, **finetune}
    teacher = run("teacher", "finetune", taught, model=jobs.artifact(model, "model", stage="base"), data=examples)
    given = {"teacher": "teacher", "data": "data", "layers": 1, "global_batch_size": 8, **distill}
    student = run("student", "distill", given, teacher=of(teacher, "model"), data=examples)
    onnx = run("onnx", "export", {"model": "student", "data": "data"}, model=of(student, "model"), data=examples)
    int8 = run("int8", "quantize", {"model": "onnx", "data": "data"}, model=of(onnx, "onnx"), data=examples)
    models = [of(teacher, "model"), of(student, "model"), of(onnx, "onnx"), of(int8, "onnx")]
    scored = run(
        "scores",
        "evaluate",
        {
            "models": [one.stage for one in models],
            "data": "data.test",
            "resamples": 100,
            "latency": {"repeats": 2, "max_seconds": 0.02},
        },
        models=models,
        data=jobs.artifact(data, "dataset", stage="data", split="test"),
    )
    found["scores"] = json.loads((scored / "scores.json").read_text())
    gated = {"scores": "scores", "candidate": "onnx", "against": "student", "require": require}
    verdict = run("verdict", "gate", gated, scores=of(scored, "scores"))
    found["verdict"] = json.loads((verdict / "verdict.json").read_text())
    return found
