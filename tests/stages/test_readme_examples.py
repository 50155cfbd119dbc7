"""The stage and the objective that the README adds do what it says."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tasks.stage import stages


@pytest.fixture
def readme(load: Any, tmp_path: Path) -> Any:
    examples = load("readme_examples.py")
    with examples.registered(tmp_path / "registered"):
        yield examples


def test_the_stage_averages_weights(readme: Any, jobs: ModuleType, tiny: ModuleType, tmp_path: Path) -> None:
    average = stages()["average"]
    folders = [tmp_path / name for name in ("one", "other")]
    for folder, seed in zip(folders, (1.0, 3.0), strict=True):
        model = tiny.model()
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, seed)
        model.save_pretrained(folder)
        (folder / "forgeline.json").write_text("{}")
    inputs = {"models": [jobs.artifact(folder, "model", stage=folder.name) for folder in folders]}
    job = jobs.make_job(tmp_path / "job", average.params(models=["one", "other"]), inputs)
    assert average.run(job) == {"models": 2.0}
    mean = load_file(job.output / "model.safetensors")
    assert mean and all(bool((value == 2.0).all()) for value in mean.values())
    assert type(tiny.model()).from_pretrained(job.output) and (job.output / "forgeline.json").exists()


def test_the_objective_is_trained_by_a_stage_that_never_heard_of_it(
    readme: Any, jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path, tmp_path: Path
) -> None:
    finetune, base = stages()["finetune"], tmp_path / "base"
    tiny.model(vocabulary=tiny.VOCABULARY).save_pretrained(base)
    for file in (tiny_inputs / "tokenizer").iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    (base / "forgeline.json").write_text(json.dumps({"objective": "causal_lm", "max_length": 32, "labels": None}))
    params = finetune.params.model_validate(
        {
            "model": "base",
            "data": "data",
            "objective": "last_token_classification",
            "max_steps": 30,
            "learning_rate": 1e-2,
            "global_batch_size": 8,
        }
    )
    inputs = {"model": jobs.artifact(base, "model"), "data": jobs.artifact(tiny_inputs / "dataset", "dataset")}
    job = jobs.make_job(tmp_path / "job", params, inputs)
    metrics = finetune.run(job)
    assert metrics["validation_f1_macro"] > metrics["baseline_majority"]
    config = json.loads((job.output / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
