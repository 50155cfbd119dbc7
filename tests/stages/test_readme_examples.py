"""The stage and the objective that the README adds do what it says."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tasks.pipeline.load import load_pipeline
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


def test_the_data_example_makes_what_it_says(
    readme: Any, jobs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pydoc_data.topics import topics

    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))
    sentences = sorted({s for topic in topics.values() for s in topic.split("\n\n") if 150 < len(s) < 600})
    for name in ("goods", "reviews"):
        (tmp_path / name).mkdir()
    reviews = [{"body": text} for text in sentences[:30]]
    goods = [
        {"title": text, "photo": bytes([i % 256]), "price": i / 7, "kind": ("shoe", "boot", "hat")[i % 3], "brand": f"b{i % 20}"}
        for i, text in enumerate([*sentences[30:330], *sentences[:30]])
    ]  # fmt: skip
    (tmp_path / "reviews/a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reviews))
    pq.write_table(pa.Table.from_pylist(goods), tmp_path / "goods/a.parquet")
    data = yaml.safe_load(readme.blocks("yaml")[1])
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump({"name": "shop", "stages": data}))
    stages = load_pipeline(tmp_path / "pipeline.yaml").stages
    made = {}
    for name, inputs in (("reviews", {}), ("goods", {"decontaminate.against": ["reviews"]})):
        given = {
            key: [jobs.stored(tmp_path / "store", made[of].output, "dataset", stage=of, split="test") for of in names]
            for key, names in inputs.items()
        }
        made[name] = jobs.make_job(tmp_path / f"job-{name}", stages[name].params, given, store=tmp_path / "store")
        stages[name].stage.run(made[name])
        jobs.collect(made[name])
    tables = {
        split: [row for file in (made["goods"].output / split).glob("*") for row in pq.read_table(file).to_pylist()]
        for split in ("train", "validation", "test")
    }
    places = {row["photo"][0]: round(row["price"] * 7) for rows in tables.values() for row in rows}
    assert all(photo == place % 256 for photo, place in places.items())
    assert {row["label"] for row in tables["train"]} == {"footwear", "headwear"}
    groups = [{row["group"] for row in rows} for rows in tables.values()]
    assert all(groups) and sum(map(len, groups)) == len(set().union(*groups)), "no brand in two splits"
    tested = {
        text for file in (made["reviews"].output / "test").glob("*") for text in pq.read_table(file)["text"].to_pylist()
    }
    assert tested and not tested & {row["text"] for row in tables["train"]}


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


def test_the_domain_of_the_page_goes_through_the_stages(
    load: Any, jobs: ModuleType, tiny: ModuleType, tmp_path: Path
) -> None:
    """Rising and falling signals, by a file of a domain that no other file knows."""
    random, labels = np.random.default_rng(0), ["falling", "rising"]
    splits = {
        split: [
            {
                "text": "",
                "label": labels[i % 2],
                "values": (random.normal(0, 0.3, 32) + np.linspace(-1, 1, 32) * (1 if i % 2 else -1)).tolist(),
            }
            for i in range(size)
        ]
        for split, size in (("train", 120), ("validation", 40), ("test", 40))
    }
    data = jobs.artifact(tiny.write_rows(tmp_path / "signals", splits, labels=labels), "dataset", stage="signals")
    sizes = {"hidden_size": 8, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2}
    budget = {"max_steps": 60, "learning_rate": 1e-2, "global_batch_size": 16}
    model = {"type": "bert", **sizes, "vocab_size": 4, "max_position_embeddings": 16}
    settings = {
        "pretrain": {"data": "d", "objective": "signal_classification", "model": model, **budget},
        "distill": {"teacher": "m", "data": "d", "layers": 1, **budget},
        "prune": {"model": "m", "data": "d", "keep": 0.5, "samples": 40, "heal": {**budget, "max_steps": 5}},
        "export": {"model": "m"},
        "quantize": {"model": "m", "scheme": "dynamic_int8"},
        "evaluate": {"models": ["m"], "data": "d", "resamples": 100, "latency": {"repeats": 2}},
    }
    made = {}
    lines = next(iter(load("readme_examples.py").blocks("python", "docs/add-an-objective.md"))).splitlines()
    assert len(lines) <= 80
    with load("readme_examples.py").registered(tmp_path, "docs/add-an-objective.md"):
        for kind, inputs in (
            ("pretrain", lambda: {"data": data}),
            ("distill", lambda: {"teacher": made["pretrain"], "data": data}),
            ("prune", lambda: {"model": made["pretrain"], "data": data}),
            ("export", lambda: {"model": made["distill"]}),
            ("quantize", lambda: {"model": made["export"]}),
            ("evaluate", lambda: {"models": list(made.values()), "data": data}),
        ):
            stage = stages()[kind]
            job = jobs.make_job(tmp_path / kind, stage.params.model_validate(settings[kind]), inputs())
            stage.run(job)
            made[kind] = jobs.artifact(job.output, stage.makes, stage=kind)
    scores = json.loads((made["evaluate"].path / "scores.json").read_text())
    values = {name: model["metrics"]["f1_macro"] for name, model in scores["models"].items()}
    assert all(value["low"] > scores["baselines"]["majority"] for value in values.values()), "each beats the baseline"
    assert values["export"]["value"] == pytest.approx(values["distill"]["value"], abs=1e-4)
