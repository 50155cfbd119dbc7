"""The pipeline that the page shows for several tasks, run as it stands there, on small data and for a few steps."""

from __future__ import annotations

import json
import re
from pathlib import Path
from pydoc_data.topics import topics as manual
from types import ModuleType
from typing import Any

import yaml

from tasks.pipeline.load import load_pipeline

NAMES = ("Ada", "Grace", "Alan", "Kurt")
PLACES = ("Paris", "Vienna", "London", "Basel")
SMALL = ("encoder.pretrain", "shared.multitask", "alone.finetune")


def write_sources(folder: Path) -> None:
    """Sentences about people and places: what they are about, and which of their words are names of what."""
    topics, tagged = [], []
    prose = re.findall(r"\b[a-z]{4,9}\b", " ".join(manual.values()))
    for i in range(120):
        name, place = NAMES[i % 4], PLACES[i // 4 % 4]
        begun = [name, "went", "to", place] if i % 3 else [place, "is", "near", PLACES[i % 4]]
        words = begun + prose[6 * i : 6 * i + 6]
        tags = [f"B-{'PER' if w in NAMES else 'LOC'}" if w in NAMES + PLACES else "O" for w in words]
        topics.append({"text": " ".join(words), "topic": "travel" if i % 3 else "maps"})
        tagged.append({"text": " ".join(words), "words": words, "tags": tags})
    for kind, rows in (("topics", topics), ("tagged", tagged)):
        (folder / kind).mkdir()
        for i in range(20):  # the rows of a file stay in one split
            text = "".join(json.dumps(row) + "\n" for row in rows[6 * i : 6 * i + 6])
            (folder / kind / f"{i}.jsonl").write_text(text)


def test_the_pages_two_tasks_are_trained_compared_and_gated(load: Any, jobs: ModuleType, tmp_path: Path) -> None:
    pages = load("readme_examples.py").blocks("yaml", "docs/objectives.md")
    shown = next(yaml.safe_load(block) for block in pages if "multitask:" in block)
    write_sources(tmp_path)
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump({"name": "two-tasks", "stages": shown}))
    small = [f"stages.{stage}.global_batch_size=8" for stage in SMALL]
    small += [f"stages.encoder.pretrain.model.{field}" for field in ("hidden_size=32", "num_hidden_layers=2")]
    small += ["stages.shared.multitask.eval_every=10", "stages.encoder.pretrain.max_steps=20"]
    small += ["stages.pieces.tokenizer.vocab_size=260", "stages.gain.evaluate.resamples=100"]
    pipeline = load_pipeline(tmp_path / "pipeline.yaml", small)
    made: dict[str, Any] = {}
    for name, node in pipeline.stages.items():
        inputs: dict[str, Any] = {}
        for item in node.inputs:
            source = made[item.stage]
            type = pipeline.stages[item.stage].stage.makes
            given = jobs.stored(tmp_path / "store", source.output, type, stage=item.stage, split=item.split)
            inputs.setdefault(item.field, []).append(given)
        # A lazy stage takes its inputs out of the store; checkpoints of trainings made by hand would share a key there.
        store = tmp_path / "store" if node.stage.lazy else None
        made[name] = jobs.make_job(tmp_path / name, node.params, inputs, name=name, store=store)
        made[name].metrics = node.stage.run(made[name])
        jobs.collect(made[name])
    scores = json.loads((made["gain"].output / "scores.json").read_text())
    verdict = json.loads((made["no_worse"].output / "verdict.json").read_text())
    assert set(scores["models"]) == {"alone", "together"} and scores["primary_metric"] == "span_f1"
    (requirement,) = verdict["requirements"]
    assert requirement["against"] == scores["models"]["alone"]["metrics"]["span_f1"]["value"]
    assert requirement["passed"] == (requirement["bound"] <= requirement["limit"]), "the bound decides, not the point"
    assert "with 95% confidence" in requirement["sentence"]
    assert {"topic/loss", "names/loss", "names/log_variance"} <= made["shared"].metrics.keys() | set(
        json.loads((made["shared"].records / "train.jsonl").read_text().splitlines()[0])
    )
