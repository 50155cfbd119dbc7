"""A champion of older data beside a challenger, both real if tiny models: what each had seen, and what the gate asks."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from transformers import AutoModelForTokenClassification

from infra import refs
from infra.artifacts import Manifest
from infra.errors import StageError
from infra.open_store import open_store
from tasks.models.card import ModelCard, write_card
from tasks.stage import InputArtifact
from tasks.stages import evaluate, gate

LABELS = ["json", "logging", "wsgiref"]
REF = "code/production"
OLD_ROWS = 25


class World:
    """A store with a dataset, an older one with fewer test examples, and models trained on either."""

    def __init__(self, tiny: ModuleType, inputs: Path, jobs: ModuleType, folder: Path) -> None:
        self.tiny, self.inputs, self.jobs, self.folder = tiny, inputs, jobs, folder
        self.store = open_store(str(folder / "store"))
        self.rows = pq.read_table(inputs / "dataset/test/0.parquet")
        older = shutil.copytree(inputs / "dataset", folder / "older")
        pq.write_table(self.rows.slice(0, OLD_ROWS), older / "test/0.parquet")
        self.old = self.commit("dataset", older, "functions")
        self.now = self.commit("dataset", inputs / "dataset", "functions")
        self.challenger = self.model("new", self.now)

    def commit(self, type: str, folder: Path, stage: str, **inputs: Manifest) -> InputArtifact:
        made_of = {k: [{**asdict(one.ref), "stage": "functions", "split": None}] for k, one in inputs.items()}
        key = f"{len(self.store.list(f'artifacts/{type}')) + 1:064d}"
        manifest = self.store.commit(
            kind=type, type=type, key=key, attempt="a", payload_dir=folder, identity={}, inputs=made_of
        )
        return InputArtifact(stage, self.store.fetch(manifest), manifest)

    def model(self, name: str, data: InputArtifact, *, labels: list[str] = LABELS, layers: int = 1) -> InputArtifact:
        folder = self.folder / name
        made = self.tiny.model("llama", AutoModelForTokenClassification, layers=layers, vocabulary=320, num_labels=3)
        made.save_pretrained(folder)
        for path in (self.inputs / "tokenizer").iterdir():
            shutil.copy(path, folder)
        write_card(folder, ModelCard({"name": "text_classification"}, 32, labels))
        return self.commit("model", folder, name, data=data.manifest)

    def evaluate(self, name: str, champion: InputArtifact | None, **given: Any) -> Any:
        if champion is not None:
            refs.advance(self.store, REF, champion.manifest.ref)
        inputs: dict[str, Any] = {"models": [self.challenger], "data": self.now}
        inputs |= {"champion": champion} if champion else {}
        params = {"models": ["new"], "champion": REF, "data": "functions", "resamples": 200, "latency": {"repeats": 2}}
        job = self.jobs.make_job(
            self.folder / name, evaluate.Params.model_validate({**params, **given}), inputs, store=self.folder / "store"
        )
        evaluate.run(job)
        job.scores = json.loads((job.output / "scores.json").read_text())
        return job

    def judge(self, name: str, job: Any, *require: dict[str, Any]) -> dict[str, Any]:
        params = {"scores": "scores", "candidate": "new", "against": "champion", "require": list(require)}
        scores = self.jobs.artifact(job.output, "scores", stage="scores")
        made = self.jobs.make_job(self.folder / name, gate.Params.model_validate(params), {"scores": scores})
        gate.run(made)
        verdict: dict[str, Any] = json.loads((made.output / "verdict.json").read_text())
        return verdict


@pytest.fixture(scope="module")
def world(tiny: ModuleType, tiny_inputs: Path, jobs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tiny, tiny_inputs, jobs, tmp_path_factory.mktemp("champion"))


def drop(metric: str) -> dict[str, Any]:
    return {"metric": metric, "max_drop": 1.0}


def test_known_and_new_examples_are_judged_apart(world: World) -> None:
    must = [str(name) for name in world.rows["id"].to_pylist()[:3]]
    champion = world.model("old", world.old, layers=2)
    job = world.evaluate("beside", champion, slices={"must": {"by": "id", "listed": must, "min_examples": 1}})
    said, n = job.scores["champion"], world.rows.num_rows
    assert (said["entry"], said["known"], said["new"]) == (1, OLD_ROWS, n - OLD_ROWS)
    assert said["digest"] == champion.manifest.digest and said["challengers"] == [world.challenger.manifest.digest]
    arrays = load_file(job.output / "predictions.safetensors")
    for model in ("new", "champion"):
        hits = arrays[f"{model}/labels"] == arrays[f"{model}/logits"].argmax(1)
        metrics = job.scores["models"][model]["metrics"]
        assert metrics["accuracy[since=known]"]["value"] == pytest.approx(np.mean(hits[:OLD_ROWS]))
        assert metrics["accuracy[since=new]"]["value"] == pytest.approx(np.mean(hits[OLD_ROWS:]))
        assert metrics["accuracy[must=listed]"] | {"value": np.mean(hits[:3])} == metrics["accuracy[must=listed]"]
    right = float(job.scores["models"]["new"]["metrics"]["accuracy[must=listed]"]["value"])
    verdict = world.judge(
        "verdict", job, *map(drop, ("accuracy[since=known]", "accuracy[since=new]", "accuracy[since=*]")),
        {"metric": "accuracy[must=listed]", "min": 1.0},
    )  # fmt: skip
    assert [one["passed"] for one in verdict["requirements"]] == [True, True, True, right == 1.0]
    assert all(one["against"] is not None for one in verdict["requirements"][:3])
    assert verdict["champion"]["known"] == OLD_ROWS


def test_the_first_challenger_meets_nobody(world: World) -> None:
    verdict = world.judge(
        "first-verdict", world.evaluate("first", None), drop("accuracy"), {"metric": "accuracy", "min": 1.1}
    )
    assert [one["passed"] for one in verdict["requirements"]] == [True, False] and verdict["against"] is None
    with pytest.raises(StageError, match="Did you mean"):
        params = {"scores": "s", "candidate": "new", "against": "nwe", "require": [drop("accuracy")]}
        scores = world.jobs.artifact(world.folder / "first/output", "scores", stage="scores")
        gate.run(world.jobs.make_job(world.folder / "typo", gate.Params.model_validate(params), {"scores": scores}))


def test_a_champion_of_another_label_map_is_refused_by_name(world: World) -> None:
    with pytest.raises(StageError, match=r"the champion knows the labels \['a', 'b', 'c'\], and 'new' knows") as caught:
        world.evaluate("labels", world.model("foreign", world.now, labels=["a", "b", "c"]))
    assert "Begin a new ref" in str(caught.value)


def test_listed_examples_that_are_gone_are_an_error(world: World) -> None:
    with pytest.raises(StageError, match=r"slices.must.listed: 1 of the 1 listed values of 'id' are not in the split"):
        world.evaluate("gone", None, slices={"must": {"by": "id", "listed": ["nobody"], "min_examples": 1}})


def test_names_the_champion_takes_are_not_free(world: World) -> None:
    for given, says in (
        ({"models": ["champion"]}, "call the stage"),
        ({"slices": {"since": {"by": "id"}}}, "call yours"),
    ):
        with pytest.raises(ValueError, match=says):
            evaluate.Params.model_validate({"models": ["m"], "champion": REF, "data": "d", **given})
