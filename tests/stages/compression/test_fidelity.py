"""Exports compared with their parents on real examples: the figures by hand, and a refusal that says where."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForTokenClassification

from infra.errors import StageError
from tasks.compression.onnx.fidelity import differences, fidelity
from tasks.models.card import ModelCard, write_card
from tasks.models.runtime import OnnxRuntime, TorchRuntime
from tasks.objective import class_head, objective
from tasks.processors.tokenizer import Tokenizer
from tasks.stages import export, quantize

WORDS = ("red", "green", "blue", "apple", "pear", "plum", "dog", "cat", "cow", "run", "sit", "eat")
LABELS = list("abcdefgh")
TEXTS = [" ".join(WORDS[(i * k) % 12] for k in range(1, 2 + i % 9)) for i in range(200)]


@pytest.fixture(scope="module")
def data(jobs: ModuleType, whole_way: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    columns = {"text": TEXTS, "label": [LABELS[i % 8] for i in range(len(TEXTS))]}
    folder = whole_way.dataset(tmp_path_factory.mktemp("data") / "texts", columns, labels=LABELS)
    return jobs.artifact(folder, "dataset", stage="texts")


@pytest.fixture(scope="module")
def model(jobs: ModuleType, tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder, tokenizer = tmp_path_factory.mktemp("model"), tiny.word_tokenizer(WORDS)
    made = tiny.model(
        "bert",
        AutoModelForTokenClassification,
        layers=1,
        vocabulary=len(tokenizer),
        **class_head(LABELS),
        initializer_range=0.5,
    )
    tiny.write_model(folder, made, tokenizer, 32)
    write_card(folder, ModelCard({"name": "text_classification"}, 32, LABELS))
    return jobs.artifact(folder, "model", stage="student")


def run(jobs: ModuleType, folder: Path, stage: Any, source: Any, data: Any, **params: Any) -> Any:
    job = jobs.make_job(folder, stage.Params(model="m", data="d", **params), {"model": source, "data": data}, name="it")
    job.metrics = stage.STAGE.run(job)
    return job


@pytest.fixture(scope="module")
def exported(jobs: ModuleType, model: Any, data: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(jobs, tmp_path_factory.mktemp("exported"), export, model, data)


def test_differences_leave_padding_out_and_no_number_is_infinitely_far() -> None:
    parent, mask = np.zeros((2, 3, 2), np.float32), np.array([[1, 1, 0], [1, 1, 1]])
    given = parent.copy()
    given[0, 2] = 9.0
    given[1, 2, 1] = 0.25
    assert differences(parent, given, mask).max() == 0.25
    given[0, 0, 0] = np.nan
    assert differences(parent, given, mask).max() == np.inf
    with pytest.raises(StageError, match=r"outputs of shape \(2, 3\), the model \(2, 3, 2\)"):
        differences(parent, given[..., 0], mask)


def test_an_example_that_is_answered_otherwise_is_counted_and_named(model: Any, data: Any) -> None:
    """One text of 40 gets the opposite of the model's scores: by hand, 39 agree, and it is the one that is named."""
    runtime = TorchRuntime(model.path, objective("text_classification"))
    features = objective("text_classification").bound(Tokenizer(_tokenizer(model), 32)).examples(data, "validation")
    (number,) = [i for i, feature in enumerate(features) if i == 17]
    wanted = features[number]["input_ids"]
    assert sum(np.array_equal(feature["input_ids"], wanted) for feature in features) == 1

    def turned(batch: Any) -> Any:
        logits = runtime.outputs(batch)["logits"]
        for row, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
            if np.array_equal(ids[mask == 1], wanted):
                logits[row] = -logits[row]
        return {"logits": logits}

    found = fidelity(model, data, "validation", runtime.outputs, turned)
    assert (found.examples, found.agreement, found.example) == (40, 39 / 40, "row085")
    own = runtime.outputs(
        {"input_ids": wanted[None].astype(np.int64), "attention_mask": np.ones((1, len(wanted)), int)}
    )["logits"]
    assert found.max_abs_diff == pytest.approx(2 * np.abs(own).max(), rel=1e-4)
    assert found.given == -found.parent and abs(found.parent) == pytest.approx(np.abs(own).max(), rel=1e-4)
    same = fidelity(model, data, "validation", runtime.outputs, runtime.outputs)
    assert (same.agreement, same.max_abs_diff) == (1.0, 0.0)


def _tokenizer(model: Any) -> Any:
    from tasks.processors.tokenizer import load_tokenizer

    return load_tokenizer(model.path)


def test_an_export_is_proven_on_the_examples_of_a_split(exported: Any) -> None:
    said = json.loads((exported.records / "fidelity.json").read_text())
    assert exported.metrics["agreement"] == said["agreement"] == 1.0
    assert 0 < exported.metrics["max_abs_diff"] == said["max_abs_diff"] < 1e-4
    assert (said["split"], said["examples"], said["tolerance"]) == ("validation", 40, 1e-3)


def test_a_difference_beyond_the_tolerance_is_refused_with_the_example_and_both_values(
    jobs: ModuleType, model: Any, data: Any, tmp_path: Path
) -> None:
    from dataclasses import replace

    with pytest.raises(StageError) as caught:
        run(jobs, tmp_path, export, model, replace(data, split="test"), tolerance=1e-9)
    message = str(caught.value)
    named = re.search(
        r"stages.it.tolerance: the export differs .* at example '(row\d+)': (\S+) and not (\S+)\n", message
    )
    assert named and int(named[1][3:]) % 5 == 1, "an example of the test split, the one that was named"
    assert float(named[2]) == pytest.approx(float(named[3]), abs=1e-4)
    assert "raise `tolerance`" in message


def test_quantizing_is_held_against_the_graph_it_came_from(
    jobs: ModuleType, exported: Any, data: Any, tmp_path: Path
) -> None:
    source = jobs.artifact(exported.output, "onnx", stage="onnx")
    job = run(jobs, tmp_path / "a", quantize, source, data, scheme="int4", min_agreement=0.1)
    graphs = [OnnxRuntime(folder, 1) for folder in (exported.output, job.output)]
    found = fidelity(source, data, "validation", *(graph.outputs for graph in graphs))
    assert job.metrics["max_abs_diff"] == pytest.approx(found.max_abs_diff, rel=1e-4) and found.max_abs_diff > 1e-3
    assert job.metrics["agreement"] == found.agreement
    assert found.agreement is not None and 0.5 < found.agreement < 1
    with pytest.raises(StageError, match=r"decides on texts.validation, .*% stays, less than 100.00%"):
        run(jobs, tmp_path / "b", quantize, source, data, scheme="int4", min_agreement=1.0)


CHOICES: list[tuple[str, Any, Any, Any, Any]] = [
    ("single label", {"name": "text_classification", "pooling": "model"}, [[1, 2], [3, 0]], {}, [1, 0]),
    (
        "several labels",
        {"name": "text_classification", "pooling": "model", "problem": "multi_label", "labels": "tags"},
        [[1, -2], [3, 4]],
        {},
        [[1, 0], [1, 1]],
    ),
    (
        "a number",
        {"name": "text_classification", "pooling": "model", "problem": "regression", "target": "stars"},
        [[1], [2]],
        {},
        None,
    ),
    ("next token", "causal_lm", [[[0, 1], [1, 0], [0, 1]]], {"labels": [[-100, 0, 1]]}, [1, 0]),
    ("hidden token", "masked_lm", [[[0, 1], [1, 0], [0, 1]]], {"labels": [[-100, 0, 1]]}, [0, 1]),
    ("words", "token_classification", [[[0, 1], [1, 0], [0, 1]]], {"starts": [[1, 2, -1]]}, [0, 1]),
    ("a vector", {"name": "sentence_embedding", "positive": "twin"}, [[[0, 1], [1, 0]]], {}, None),
]


@pytest.mark.parametrize(("name", "settings", "logits", "batch", "expected"), CHOICES, ids=[c[0] for c in CHOICES])
def test_what_is_decided_by_hand(name: str, settings: Any, logits: Any, batch: Any, expected: Any) -> None:
    given = {"labels": np.zeros(len(logits)), **{key: np.array(value) for key, value in batch.items()}}
    found = objective(settings).bound(labels=["x", "y"]).choices({"logits": np.array(logits, np.float32)}, given)
    assert (found is None and expected is None) or found.tolist() == expected
