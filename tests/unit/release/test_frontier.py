"""frontier: the smallest that passes is chosen, certainty is that of all together, the front is the one by definition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from infra.artifacts import ArtifactRef
from infra.errors import StageError
from infra.open_store import open_store
from tasks.models.card import ModelCard, write_card
from tasks.release.gate.judging import read_replicates
from tasks.stages import frontier, promote

MODELS = {  # f1, MB, ms
    "teacher": (0.90, 90.0, 10.0),
    "half": (0.895, 60.0, 5.0),
    "int8": (0.89, 22.0, 6.0),
    "half-int8": (0.885, 17.0, 3.0),
    "quarter": (0.70, 9.0, 2.0),
    "fat": (0.885, 95.0, 11.0),
}


def evaluation(folder: Path, *, greater_is_better: bool = True, noise: float = 0.004) -> Path:
    """scores.json and replicates of the models; each resample moves all by the same, and each by its own noise."""
    folder.mkdir()
    random = np.random.default_rng(0)
    shared, drawn, models = random.normal(0, 0.02, 1000), {}, {}
    for name, (f1, size, latency) in MODELS.items():
        models[name] = {
            "artifact": {
                "kind": "export",
                "key": f"{len(models):064x}",
                "digest": f"{len(models):064x}",
                "type": "onnx",
            },
            "metrics": {"f1": {"value": f1, "greater_is_better": greater_is_better}},
            "size_mb": size,
            "parameters": 10,
            "latency_ms": {"1": {"p50": latency, "p95": 2 * latency, "n": 30}},
        }
        drawn[f"{name}/f1"] = f1 + shared + random.normal(0, noise, 1000)
    scores = {
        "models": models, "primary_metric": "f1", "greater_is_better": greater_is_better, "resamples": 1000,
        "data": {"stage": "texts", "split": "test", "n": 100, "digest": "0"},
    }  # fmt: skip
    (folder / "scores.json").write_text(json.dumps(scores))
    save_file(drawn, folder / "replicates.safetensors")
    return folder


def decided(jobs: Any, folder: Path, scores: Path, **params: Any) -> tuple[dict[str, Any], dict[str, float]]:
    given = {"scores": "s", "against": "teacher", "require": [{"metric": "f1", "max_drop": 0.02}], **params}
    source = {"scores": jobs.artifact(scores, "scores", stage="scores")}
    job = jobs.make_job(folder, frontier.Params.model_validate(given), source)
    metrics = frontier.run(job)
    return json.loads((job.output / "verdict.json").read_text()), metrics


@pytest.fixture(scope="module")
def jobs(load: Any) -> Any:
    return load("stages/jobs.py")


def test_the_smallest_that_passes_is_chosen(jobs: Any, tmp_path: Path) -> None:
    scores = evaluation(tmp_path / "scores")
    verdict, metrics = decided(jobs, tmp_path / "a", scores)
    assert verdict["passed"] and verdict["candidate"]["name"] == "half-int8", "`quarter` is smaller and not good enough"
    assert [one["name"] for one in verdict["candidates"]] == ["quarter", "half-int8", "int8", "half", "fat"]
    assert [one["passed"] for one in verdict["candidates"]] == [False, True, True, True, True]
    assert metrics == {"passed": 1.0, "candidates": 5.0, "candidates_passed": 4.0, "on_front": 4.0}
    assert [one["name"] for one in verdict["candidates"] if not one["on_front"]] == ["fat"]
    assert verdict["requirements"] == next(c for c in verdict["candidates"] if c["name"] == "half-int8")["requirements"]


def test_another_cost_and_fewer_candidates_choose_another(jobs: Any, tmp_path: Path) -> None:
    scores = evaluation(tmp_path / "scores")
    drop = [{"metric": "f1", "max_drop": 0.3}]
    verdict, _ = decided(jobs, tmp_path / "a", scores, smallest="latency_p50_ms@1", require=drop)
    assert verdict["candidate"]["name"] == "quarter"
    verdict, _ = decided(jobs, tmp_path / "b", scores, candidates=["fat", "int8", "half"])
    assert verdict["candidate"]["name"] == "int8"


def test_where_none_passes_the_best_is_refused_with_its_figures(jobs: Any, tmp_path: Path) -> None:
    verdict, metrics = decided(
        jobs, tmp_path / "a", evaluation(tmp_path / "scores"), require=[{"metric": "f1", "min": 0.99}]
    )
    assert not verdict["passed"] and metrics["passed"] == 0.0
    assert verdict["candidate"]["name"] == "half" and "refused" in verdict["requirements"][0]["sentence"]


def test_confidence_is_that_of_all_candidates_together(jobs: Any, tmp_path: Path) -> None:
    """Five candidates at 95%: each is held to 99%. Its bound is that quantile of its own paired drops."""
    scores = evaluation(tmp_path / "scores")
    asked = [{"metric": "f1", "max_drop": 0.02, "confidence": 0.95}]
    verdict, _ = decided(jobs, tmp_path / "five", scores, require=asked)
    alone, _ = decided(jobs, tmp_path / "one", scores, require=asked, candidates=["int8"])
    drawn = read_replicates(scores)
    drops = drawn["teacher"]["f1"] - drawn["int8"]["f1"]
    five = next(one for one in verdict["candidates"] if one["name"] == "int8")["requirements"][0]
    assert five["confidence"] == pytest.approx(0.99)
    assert five["bound"] == pytest.approx(np.quantile(drops, 0.99, method="higher"))
    assert alone["requirements"][0]["bound"] == pytest.approx(np.quantile(drops, 0.95, method="higher"))


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=8))
def test_the_front_is_whom_nobody_beats(points: dict[str, tuple[int, int]]) -> None:
    front = frontier.pareto_front(points)
    for name, (a, b) in points.items():
        beaten = any((c <= a and d <= b) and (c < a or d < b) for c, d in points.values())
        assert (name in front) == (not beaten)


def test_names_that_were_not_evaluated_are_told(jobs: Any, tmp_path: Path) -> None:
    scores = evaluation(tmp_path / "scores")
    with pytest.raises(StageError, match="evaluated no model named 'haf'") as caught:
        decided(jobs, tmp_path / "a", scores, candidates=["haf"])
    assert "Did you mean half?" in str(caught.value)
    with pytest.raises(StageError, match="holds no model but 'teacher'"):
        decided(jobs, tmp_path / "b", scores, candidates=["teacher"])


def test_what_was_chosen_is_promoted_without_being_named(jobs: Any, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    (tmp_path / "model").mkdir()
    write_card(tmp_path / "model", ModelCard({"name": "text_classification"}, 32, ["a", "b"], "onnx"))
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], [])), str(tmp_path / "model/model.onnx"))
    made = store.commit(
        kind="export", type="onnx", key="1" * 64, attempt="a", payload_dir=tmp_path / "model", identity={}
    )
    judged = {"name": "small", "kind": made.kind, "key": made.key, "digest": made.digest, "type": made.type}
    (tmp_path / "verdict").mkdir()

    def released(place: str, verdict: dict[str, Any]) -> dict[str, Any]:
        (tmp_path / "verdict/verdict.json").write_text(json.dumps(verdict))
        params = promote.Params(gate="smallest", ref="code/production")
        source = {"gate": jobs.artifact(tmp_path / "verdict", "verdict", stage="smallest")}
        job = jobs.make_job(tmp_path / place, params, source, store=tmp_path / "store")
        promote.run(job)
        found: dict[str, Any] = json.loads((job.output / "release.json").read_text())
        return found

    verdict = {"passed": True, "candidate": judged, "requirements": []}
    assert ArtifactRef(**released("a", verdict)["model"]) == made.ref
    gone = {**verdict, "candidate": {**judged, "key": "2" * 64}}
    with pytest.raises(StageError, match="'small', which was let through, is no longer in the store"):
        released("b", gone)
