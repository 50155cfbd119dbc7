"""evaluate: every number against a second way to compute it; children that die; then the gate on what it wrote."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, PreTrainedTokenizerFast

from infra.errors import StageError
from infra.launch.forked import forked
from tasks.compression.onnx.export import export_onnx
from tasks.data.tokens.packing import PackedRows
from tasks.evaluation.slices import MOST, Slicing, read_masks
from tasks.metrics.bootstrap import resample_weights
from tasks.models.card import ModelCard, write_card
from tasks.models.files import copy_companions, shipped_bytes
from tasks.objective import objective
from tasks.objectives.text.inputs.augmentation import augmented
from tasks.processors.tokenizer import Tokenizer
from tasks.stages import evaluate, gate

LABELS = ["json", "logging", "wsgiref"]


def save(tiny: ModuleType, inputs: Path, folder: Path, **fields: Any) -> Path:
    model = tiny.model("llama", AutoModelForTokenClassification, vocabulary=320, num_labels=3, **fields)
    model.save_pretrained(folder)
    for path in (inputs / "tokenizer").iterdir():
        shutil.copy(path, folder)
    write_card(folder, ModelCard({"name": "text_classification"}, 32, LABELS))
    return folder


def with_digest(artifact: Any, digest: str) -> Any:
    return replace(artifact, manifest=replace(artifact.manifest, digest=digest))


@pytest.fixture(scope="module")
def evaluated(tiny: ModuleType, tiny_inputs: Path, jobs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two torch models and the export of the first, on the test split."""
    folder = tmp_path_factory.mktemp("evaluated")
    big = save(tiny, tiny_inputs, folder / "big")
    small = save(tiny, tiny_inputs, folder / "small", layers=1)
    # How it was trained is its own affair: it is judged alike.
    smoothed = {"name": "text_classification", "label_smoothing": 0.1}
    write_card(small, ModelCard(smoothed, 32, LABELS))
    (folder / "onnx").mkdir()
    model = AutoModelForTokenClassification.from_pretrained(big).eval()
    export_onnx(model, objective("text_classification").bound(Tokenizer(None, 32)), folder / "onnx/model.onnx")
    copy_companions(big, folder / "onnx")
    write_card(folder / "onnx", ModelCard({"name": "text_classification"}, 32, LABELS))
    inputs = {
        "models": [
            with_digest(jobs.artifact(big, "model", stage="big"), "1" * 64),
            with_digest(jobs.artifact(small, "model", stage="small"), "2" * 64),
            with_digest(jobs.artifact(folder / "onnx", "onnx", stage="onnx"), "3" * 64),
        ],
        "data": jobs.artifact(tiny_inputs / "dataset", "dataset", stage="functions", split="test"),
    }
    params = evaluate.Params(
        models=["big", "small", "onnx"],
        data="functions.test",
        latency=evaluate.Latency(batch_sizes=[1, 4], repeats=10, max_seconds=0.2),
        resamples=200,
    )
    job = jobs.make_job(folder / "job", params, inputs)
    job.metrics = evaluate.run(job)
    job.scores = json.loads((job.output / "scores.json").read_text())
    return job


def test_predictions_are_the_models_own_in_frozen_order(evaluated: Any, tiny_inputs: Path) -> None:
    """One example at a time, unpadded, through plain transformers."""
    rows = pq.read_table(tiny_inputs / "dataset/test/0.parquet").to_pylist()
    folder = evaluated.inputs["models"][0].path
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    given = load_file(evaluated.output / "predictions.safetensors")
    assert given["big/labels"].tolist() == [LABELS.index(row["label"]) for row in rows]
    for i in (0, len(rows) // 2, len(rows) - 1):
        ids = torch.tensor([tokenizer(rows[i]["text"], truncation=True, max_length=32)["input_ids"]])
        with torch.no_grad():
            np.testing.assert_allclose(given["big/logits"][i], model(ids).logits[0].mean(0).numpy(), atol=1e-5)
    np.testing.assert_allclose(given["onnx/logits"], given["big/logits"], atol=1e-5)
    assert not np.allclose(given["small/logits"], given["big/logits"], atol=1e-3)


@pytest.mark.parametrize("name", ["big", "small", "onnx"])
def test_metrics_equal_scikit_learn(evaluated: Any, name: str) -> None:
    arrays = load_file(evaluated.output / "predictions.safetensors")
    truth, logits = arrays[f"{name}/labels"], arrays[f"{name}/logits"]
    guess, probabilities = logits.argmax(1), torch.softmax(torch.from_numpy(logits).double(), 1).numpy()
    expected = {
        "accuracy": accuracy_score(truth, guess),
        "f1_macro": f1_score(truth, guess, average="macro", zero_division=0),
        "cross_entropy": log_loss(truth, probabilities, labels=[0, 1, 2]),
    }
    model = evaluated.scores["models"][name]
    for metric, value in expected.items():
        found = model["metrics"][metric]
        assert found["value"] == pytest.approx(value)
        assert found["low"] <= found["value"] <= found["high"]
        assert found["n"] == len(truth)
    each = f1_score(truth, guess, average=None, labels=[0, 1, 2], zero_division=0)
    for label, value in zip(LABELS, each, strict=True):
        assert model["metrics"][f"f1@{label}"]["value"] == pytest.approx(value)
    assert model["confusion"] == confusion_matrix(truth, guess, labels=[0, 1, 2]).tolist()


def test_scores_say_what_was_measured_on_what(evaluated: Any, tiny_inputs: Path) -> None:
    scores = evaluated.scores
    count = pq.read_table(tiny_inputs / "dataset/test/0.parquet").num_rows
    assert scores["data"] == {"stage": "functions", "split": "test", "n": count, "digest": "0" * 64}
    assert (scores["objective"], scores["primary_metric"], scores["labels"]) == (
        "text_classification",
        "f1_macro",
        LABELS,
    )
    assert list(scores["models"]) == ["big", "small", "onnx"]
    assert scores["models"]["onnx"]["artifact"]["digest"] == "3" * 64
    assert 0 < scores["baselines"]["majority"] < 1
    for model, given in zip(scores["models"].values(), evaluated.inputs["models"], strict=True):
        assert model["size_mb"] == pytest.approx(shipped_bytes(given.path) / 1e6)
        assert model["peak_memory_mb"] > 0
        assert set(model["latency_ms"]) == {"1", "4"}
        assert all(0 < t["p50"] <= t["p95"] <= t["p99"] and t["spread"] >= 0 for t in model["latency_ms"].values())
    assert scores["models"]["small"]["parameters"] < scores["models"]["big"]["parameters"]
    assert evaluated.metrics["f1_macro big"] == scores["models"]["big"]["metrics"]["f1_macro"]["value"]


def test_replicates_are_paired(evaluated: Any) -> None:
    drawn = load_file(evaluated.output / "replicates.safetensors")
    assert len(drawn["big/f1_macro"]) == 200
    np.testing.assert_allclose(drawn["onnx/cross_entropy"], drawn["big/cross_entropy"], atol=1e-5)
    assert drawn["big/cross_entropy"].std() > 0


def test_misclassified_examples_are_real(evaluated: Any, tiny_inputs: Path) -> None:
    rows = {row["id"]: row for row in pq.read_table(tiny_inputs / "dataset/test/0.parquet").to_pylist()}
    shown = json.loads((evaluated.records / "misclassified.json").read_text())
    assert shown
    for example in shown:
        assert rows[example["id"]]["label"] == example["truth"]
        assert any(guess != example["truth"] for guess in example["predictions"].values())
    assert set(json.loads((evaluated.records / "samples.json").read_text())) == {"big", "small"}


def test_gate_on_real_scores(evaluated: Any, jobs: ModuleType, tmp_path: Path) -> None:
    scores = jobs.artifact(evaluated.output, "scores", stage="scores")
    require = [{"metric": "cross_entropy", "max_drop": 1e-4, "confidence": 0.95}, {"metric": "size_mb", "max_ratio": 2}]
    params = {"scores": "scores", "candidate": "onnx", "against": "big"}
    job = jobs.make_job(tmp_path / "a", gate.Params.model_validate({**params, "require": require}), {"scores": scores})
    assert gate.run(job)["passed"] == 1
    verdict = json.loads((job.output / "verdict.json").read_text())
    assert verdict["candidate"]["digest"] == "3" * 64
    assert [r["passed"] for r in verdict["requirements"]] == [True, True]
    stricter = [*require, {"metric": "accuracy", "min": 1}]
    job = jobs.make_job(tmp_path / "b", gate.Params.model_validate({**params, "require": stricter}), {"scores": scores})
    assert gate.run(job) == {"passed": 0.0, "requirements": 3.0, "met": 2.0}
    wrong = gate.Params.model_validate({**params, "candidate": "onxx", "require": require})
    with pytest.raises(StageError, match="Did you mean onnx"):
        gate.run(jobs.make_job(tmp_path / "c", wrong, {"scores": scores}))


def test_a_model_that_answers_nan_is_refused(
    tiny: ModuleType, tiny_inputs: Path, jobs: ModuleType, tmp_path: Path
) -> None:
    """The argmax of NaN is class 0: such a model would have an accuracy, and might pass a gate."""
    folder = save(tiny, tiny_inputs, tmp_path / "broken")
    model = AutoModelForTokenClassification.from_pretrained(folder)
    with torch.no_grad():
        model.score.weight[1] = float("nan")
    model.save_pretrained(folder)
    given = {"models": ["broken"], "data": "d", "resamples": 100, "latency": {"repeats": 2}}
    inputs = {
        "models": [jobs.artifact(folder, "model", stage="broken")],
        "data": jobs.artifact(tiny_inputs / "dataset", "dataset"),
    }
    with pytest.raises(StageError, match=r"'broken' returned NaN for (\d+) of \1 examples"):
        jobs.run_stage(tmp_path / "scores", "evaluate", given, **inputs)


def test_language_model_on_packed_tokens(tiny: ModuleType, tiny_inputs: Path, jobs: ModuleType, tmp_path: Path) -> None:
    model = tiny.model("llama", AutoModelForCausalLM, vocabulary=320)
    model.save_pretrained(tmp_path / "lm")
    for path in (tiny_inputs / "tokenizer").iterdir():
        shutil.copy(path, tmp_path / "lm")
    write_card(tmp_path / "lm", ModelCard({"name": "causal_lm"}, 32, None))
    inputs = {
        "models": [jobs.artifact(tmp_path / "lm", "model", stage="lm")],
        "data": jobs.artifact(tiny_inputs / "tokens", "tokens", stage="tokens", split="validation"),
    }
    params = evaluate.Params(
        models=["lm"], data="tokens.validation", resamples=100, latency=evaluate.Latency(repeats=2, max_seconds=0.05)
    )
    job = jobs.make_job(tmp_path / "job", params, inputs)
    evaluate.run(job)
    metrics = json.loads((job.output / "scores.json").read_text())["models"]["lm"]["metrics"]
    rows = [
        torch.from_numpy(row["input_ids"].astype(np.int64)) for row in PackedRows(tiny_inputs / "tokens", "validation")
    ]
    with torch.no_grad():
        sums = [float(model(row[None], labels=row[None]).loss) * (len(row) - 1) for row in rows if len(row) > 1]
    expected = sum(sums) / sum(len(row) - 1 for row in rows)
    assert metrics["cross_entropy"]["value"] == pytest.approx(expected, rel=1e-4)
    assert metrics["perplexity"]["value"] == pytest.approx(math.exp(expected), rel=1e-3)
    assert not metrics["perplexity"]["greater_is_better"]


def test_models_of_other_labels_or_objectives_are_refused(
    tiny: ModuleType, tiny_inputs: Path, jobs: ModuleType, tmp_path: Path
) -> None:
    folder = save(tiny, tiny_inputs, tmp_path / "m", layers=1)
    data = jobs.artifact(tiny_inputs / "dataset", "dataset", stage="functions", split="test")

    def run(*models: Any) -> None:
        params = evaluate.Params(models=[m.stage for m in models], data="functions.test")
        evaluate.run(jobs.make_job(tmp_path / "job", params, {"models": list(models), "data": data}))

    first = jobs.artifact(folder, "model", stage="m")
    with pytest.raises(StageError, match="listed twice"):
        run(first, first)
    other = shutil.copytree(folder, tmp_path / "other")
    write_card(other, ModelCard({"name": "text_classification"}, 32, [*LABELS[:-1], "more"]))
    with pytest.raises(StageError, match="knows the labels"):
        run(jobs.artifact(other, "model", stage="other"))
    write_card(other, ModelCard({"name": "causal_lm"}, 32, None))
    with pytest.raises(StageError, match="different objectives"):
        run(first, jobs.artifact(other, "model", stage="other"))


def test_masks_are_of_the_rows_in_frozen_order(tiny: ModuleType, jobs: ModuleType, tmp_path: Path) -> None:
    rows = [{"text": "x" * n, "kind": kind} for n, kind in ((1, "b"), (9, None), (2, "a"), (12, "b"))]
    data = jobs.artifact(tiny.write_rows(tmp_path / "d", {"test": rows}), "dataset")
    masks = read_masks(data, "test", {"kind": Slicing(by="kind"), "long": Slicing(by="text", edges=[5, 6, 10])})
    said = {name: {one: mask.tolist() for one, mask in slices.items()} for name, slices in masks.items()}
    assert said == {
        "kind": {"(none)": [0, 1, 0, 0], "a": [0, 0, 1, 0], "b": [1, 0, 0, 1]},
        "long": {"<5": [1, 0, 1, 0], "6..10": [0, 1, 0, 0], ">=10": [0, 0, 0, 1]},
    }
    with pytest.raises(StageError, match="no column 'kin'"):
        read_masks(data, "test", {"kind": Slicing(by="kin")})
    with pytest.raises(StageError, match="no columns to slice by"):
        read_masks(jobs.artifact(tmp_path, "tokens"), "test", {"kind": Slicing(by="kind")})
    many = [{"text": str(n)} for n in range(MOST + 1)]
    data = jobs.artifact(tiny.write_rows(tmp_path / "m", {"test": many}), "dataset")
    with pytest.raises(StageError, match=f"makes {MOST + 1} slices") as caught:
        read_masks(data, "test", {"each": Slicing(by="text")})
    assert "edges" in str(caught.value)


@pytest.fixture(scope="module")
def divided(tiny: ModuleType, tiny_inputs: Path, jobs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two models on slices by package and length, and on texts with typos."""
    folder = tmp_path_factory.mktemp("divided")
    inputs = {
        "models": [
            jobs.artifact(save(tiny, tiny_inputs, folder / "big"), "model", stage="big"),
            jobs.artifact(save(tiny, tiny_inputs, folder / "small", layers=1), "model", stage="small"),
        ],
        "data": jobs.artifact(tiny_inputs / "dataset", "dataset", stage="functions"),
    }
    given = {
        "models": ["big", "small"],
        "data": "functions",
        "latency": {"repeats": 2},
        "resamples": 200,
        "slices": {
            "package": {"by": "id", "pattern": "^[a-z]+"},
            "length": {"by": "text", "edges": [400], "min_examples": 5},
        },
        "perturbations": {"typos": {"noise": 0.3}, "same": {"delete": 0.5, "share": 0}},
    }
    job = jobs.make_job(folder / "job", evaluate.Params.model_validate(given), inputs)
    evaluate.run(job)
    job.scores = json.loads((job.output / "scores.json").read_text())
    job.drawn = load_file(job.output / "replicates.safetensors")
    job.rows = pq.read_table(tiny_inputs / "dataset/test/0.parquet").to_pylist()
    return job


@pytest.mark.parametrize("name", ["big", "small"])
def test_metrics_of_slices_equal_scikit_learn_on_their_examples(divided: Any, name: str) -> None:
    arrays = load_file(divided.output / "predictions.safetensors")
    truth, guess = arrays[f"{name}/labels"], arrays[f"{name}/logits"].argmax(1)
    metrics = divided.scores["models"][name]["metrics"]
    for slicing, of in (
        ("package", lambda row: row["id"].split("/")[0]),
        ("length", lambda row: ">=400" if len(row["text"]) >= 400 else "<400"),
    ):
        slices = np.array([of(row) for row in divided.rows])
        sizes = divided.scores["slices"][slicing]["n"]
        assert sizes == {value: int((slices == value).sum()) for value in sizes} and len(sizes) > 1
        assert sum(sizes.values()) == len(truth)
        for value, n in sizes.items():
            there, found = slices == value, metrics[f"f1_macro[{slicing}={value}]"]
            expected = f1_score(
                truth[there],
                guess[there],
                average="macro",
                zero_division=0,
                labels=sorted({*truth[there], *guess[there]}),
            )
            assert (found["value"], found["n"]) == (pytest.approx(expected), n)
            assert found["low"] <= found["value"] <= found["high"] and found["greater_is_better"]
    assert "recall@json[length=<400]" in metrics
    assert divided.scores["slices"]["length"]["min_examples"] == 5


def test_slices_and_changed_texts_share_the_resamples_of_the_whole(divided: Any) -> None:
    """Hits of the slices of one slicing add up to those of all examples, resample by resample."""
    drawn, n = divided.drawn, len(divided.rows)
    guesses = load_file(divided.output / "predictions.safetensors")
    (weights,) = resample_weights(n, 200, seed=0)
    hits = np.zeros(200)
    for value in divided.scores["slices"]["package"]["n"]:
        inside = np.array([row["id"].startswith(f"{value}/") for row in divided.rows])
        hits += np.nan_to_num(drawn[f"big/accuracy[package={value}]"]) * (weights @ inside)
    np.testing.assert_allclose(hits, drawn["big/accuracy"] * n)
    np.testing.assert_allclose(
        drawn["big/accuracy"], weights @ (guesses["big/labels"] == guesses["big/logits"].argmax(1)) / n
    )
    for name in ("big", "small"):
        worse = drawn[f"{name}/cross_entropy[typos]"] - drawn[f"{name}/cross_entropy"]
        np.testing.assert_allclose(drawn[f"{name}/cross_entropy_drop[typos]"], worse)
        assert not drawn[f"{name}/cross_entropy_drop[same]"].any(), "share 0 changes nothing"


def test_changed_texts_are_judged_as_any_others(divided: Any) -> None:
    """One example at a time, unpadded, through plain transformers; the same texts whatever the model."""
    model = AutoModelForTokenClassification.from_pretrained(divided.inputs["models"][0].path).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(divided.inputs["models"][0].path)
    nll = []
    for i, row in enumerate(divided.rows):
        text = augmented(row["text"], divided.params.perturbations["typos"], 0, i)
        assert text != row["text"]
        ids = torch.tensor([tokenizer(text, truncation=True, max_length=32)["input_ids"]])
        with torch.no_grad():
            logits = model(ids).logits[0].double().mean(0)
        nll.append(-float(torch.log_softmax(logits, 0)[LABELS.index(row["label"])]))
    found = divided.scores["models"]["big"]["metrics"]
    assert found["cross_entropy[typos]"]["value"] == pytest.approx(np.mean(nll), rel=1e-4)
    drop = found["cross_entropy_drop[typos]"]
    assert drop["value"] == pytest.approx(np.mean(nll) - found["cross_entropy"]["value"], abs=1e-4)
    assert drop["greater_is_better"] is False and drop["n"] == len(nll)


def test_what_is_not_asked_for_leaves_nothing(evaluated: Any, divided: Any) -> None:
    assert not {"slices", "perturbations"} & set(evaluated.scores)
    known = evaluated.scores["models"]["big"]["metrics"]
    assert not any("[" in name for name in known)
    plain = {k: v for k, v in divided.scores["models"]["big"]["metrics"].items() if "[" not in k}
    assert plain == known, "the metrics of all examples are the same beside those of slices"


def test_only_texts_of_a_dataset_can_be_changed(
    tiny: ModuleType, tiny_inputs: Path, jobs: ModuleType, tmp_path: Path
) -> None:
    tiny.model("llama", AutoModelForCausalLM, vocabulary=320).save_pretrained(tmp_path / "lm")
    for path in (tiny_inputs / "tokenizer").iterdir():
        shutil.copy(path, tmp_path / "lm")
    write_card(tmp_path / "lm", ModelCard({"name": "causal_lm"}, 32, None))
    inputs = {
        "models": [jobs.artifact(tmp_path / "lm", "model", stage="lm")],
        "data": jobs.artifact(tiny_inputs / "tokens", "tokens", split="validation"),
    }
    given = {"models": ["lm"], "data": "tokens.validation", "resamples": 100, "latency": {"repeats": 2}}
    with pytest.raises(StageError, match="perturbations: token ids cannot be") as caught:
        jobs.run_stage(tmp_path / "a", "evaluate", {**given, "perturbations": {"typos": {"noise": 0.1}}}, **inputs)
    assert "need a dataset" in str(caught.value)
    with pytest.raises(StageError, match="slices: packed tokens have no columns"):
        jobs.run_stage(tmp_path / "b", "evaluate", {**given, "slices": {"length": {"by": "text"}}}, **inputs)


def test_gate_on_slices_and_changed_texts(divided: Any, jobs: ModuleType, tmp_path: Path) -> None:
    scores = jobs.artifact(divided.output, "scores", stage="scores")
    require = [
        {"metric": "cross_entropy[length=*]", "max_drop": 5, "confidence": 0.95},
        {"metric": "recall@json[length=<400]", "min": 0},
        {"metric": "f1_macro_drop[typos]", "max": 1, "confidence": 0.95},
        {"metric": "f1_macro_drop[typos]", "max_drop": -1},
    ]
    params = {"scores": "scores", "candidate": "small", "against": "big", "require": require}
    job = jobs.make_job(tmp_path, gate.Params.model_validate(params), {"scores": scores})
    assert gate.run(job) == {"passed": 0.0, "requirements": 4.0, "met": 3.0}
    first, *_ = json.loads((job.output / "verdict.json").read_text())["requirements"]
    assert [one["confidence"] for one in first["slices"]] == [0.975, 0.975]


class Worker:
    def add(self, a: int, b: int) -> int:
        return a + b

    def fail(self) -> None:
        raise StageError("no such split", where="data", hint="Split it.")

    def crash(self) -> None:
        raise KeyError("nothing")

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def pid(self) -> int:
        return os.getpid()


def test_children_answer_fail_and_die_cleanly() -> None:
    make: dict[str, Callable[[], Any]] = {"a": Worker, "b": Worker}
    with forked(make) as children:
        assert children["a"].call("add", 1, 2) == 3
        with pytest.raises(StageError, match=r"data: no such split\n  Split it."):
            children["a"].call("fail")
        with pytest.raises(StageError, match="KeyError: 'nothing'"):
            children["a"].call("crash")
        assert children["a"].call("add", 2, 2) == 4
        with pytest.raises(StageError, match=r"the process evaluating 'b' was ended by SIGKILL"):
            children["b"].call("die")
        left = children["a"].call("pid")
    with pytest.raises(ProcessLookupError):
        os.kill(left, 0)
