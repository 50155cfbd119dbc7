"""Text classification: metrics against scikit-learn for any weighting, and what it refuses to read."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support, roc_auc_score

from infra.errors import StageError
from tasks.objectives import SpecialIds
from tasks.objectives.text_classification import TextClassification
from tasks.training.model_files import load_tokenizer


def predictions(count: int, classes: int, *, ties: bool = True) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, count)
    logits = random.normal(size=(count, classes))
    logits[np.arange(count), labels] += 1
    return {"labels": labels, "logits": (logits.round(1) if ties else logits).astype(np.float32)}


def test_every_metric_equals_scikit_learn_under_every_weighting() -> None:
    """Rounded logits make ties, which an area by ranks alone gets wrong; zero weights drop examples, as a bootstrap does."""
    made = predictions(120, 4)
    weights = np.random.default_rng(1).multinomial(120, np.ones(120) / 120, size=6).astype(float)
    weights[0] = 1.0
    found = TextClassification().metrics(made, weights)
    probabilities = torch.softmax(torch.from_numpy(made["logits"]).double(), -1).numpy()
    labels, guesses = made["labels"], made["logits"].argmax(1)
    for row, w in enumerate(weights):
        precision, recall, f1, _ = precision_recall_fscore_support(
            labels, guesses, average="macro", sample_weight=w, zero_division=0
        )
        expected = {
            "accuracy": accuracy_score(labels, guesses, sample_weight=w),
            "precision_macro": precision,
            "recall_macro": recall,
            "f1_macro": f1,
            "roc_auc_ovr": roc_auc_score(np.eye(4)[labels], probabilities, sample_weight=w),
            "cross_entropy": log_loss(labels, probabilities, sample_weight=w),
        }
        assert {name: values[row] for name, values in found.items()} == pytest.approx(expected, abs=1e-9)


def test_a_class_that_does_not_occur_is_left_out_of_the_averages() -> None:
    """As scikit-learn does: it would otherwise pull every macro average of a small resample down."""
    made = {"labels": np.array([0, 0, 1, 1]), "logits": np.eye(3, dtype=np.float32)[[0, 1, 1, 1]]}
    found = TextClassification().metrics(made, np.ones((1, 4)))
    assert found["f1_macro"][0] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert found["recall_macro"][0] == pytest.approx(0.75)


def test_a_thousand_resamples_are_fast() -> None:
    made = predictions(800, 8)
    weights = np.random.default_rng(1).multinomial(800, np.ones(800) / 800, size=1000).astype(float)
    began = time.process_time()
    TextClassification().metrics(made, weights)
    assert time.process_time() - began < 2


def test_the_baseline_names_the_commonest_training_class() -> None:
    train = [{"label": label} for label in (1, 1, 1, 0)]
    heldout = [{"label": label} for label in (1, 0, 0, 0)]
    # Guess 1 always: class 1 has precision 1/4 and recall 1, class 0 scores nothing.
    assert TextClassification().baselines(train, heldout) == {"majority": pytest.approx(0.4 / 2)}


def test_features_are_labelled_and_cut(jobs: ModuleType, tiny_inputs: Path) -> None:
    data = jobs.artifact(tiny_inputs / "dataset", "dataset")
    tokenizer = load_tokenizer(tiny_inputs / "tokenizer")
    assert tokenizer is not None
    features = TextClassification().features(data, "test", tokenizer, 16)
    table = pq.read_table(tiny_inputs / "dataset/test/0.parquet").to_pylist()
    names = TextClassification().head(data)["id2label"]
    assert [names[f["label"]] for f in features] == [row["label"] for row in table]
    assert max(len(f["input_ids"]) for f in features) == 16
    for feature, row in zip(features, table, strict=True):
        assert feature["input_ids"].tolist() == tokenizer(row["text"])["input_ids"][:16]


def test_padding_does_not_change_a_prediction(jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path) -> None:
    from transformers import AutoModelForTokenClassification

    data = jobs.artifact(tiny_inputs / "dataset", "dataset")
    features = TextClassification().features(data, "test", load_tokenizer(tiny_inputs / "tokenizer"), 40)
    model = tiny.model(auto=AutoModelForTokenClassification, vocabulary=320, **TextClassification().head(data))
    short = min(features, key=lambda f: len(f["input_ids"]))
    alone, together = (
        TextClassification().collate([short], SpecialIds()),
        TextClassification().collate([short, *features[:3]], SpecialIds()),
    )
    assert together["input_ids"].shape[1] > alone["input_ids"].shape[1]
    with torch.no_grad():
        a, b = (
            TextClassification().scores(
                model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch
            )
            for batch in (alone, together)
        )
    torch.testing.assert_close(a[0], b[0], atol=1e-5, rtol=0)


def dataset(folder: Path, labels: list[str] | None, rows: list[str]) -> Path:
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps({"splits": {"train": len(rows)}, "labels": labels, "columns": []}))
    columns: dict[str, list[str]] = {"id": rows, "text": rows, "group": rows}
    if labels is not None:
        columns["label"] = rows
    (folder / "train").mkdir()
    pq.write_table(pa.table(columns), folder / "train/0.parquet")
    return folder


@pytest.mark.parametrize(
    ("labels", "rows", "split", "says"),
    [
        (["only"], ["only"], "train", "one class, 'only'"),
        (None, ["x"], "train", "no labels"),
        (["a", "b"], ["a", "c"], "train", "does not list: 'c'"),
        (["a", "b"], ["a"], "test", "no split 'test'"),
    ],
)
def test_data_it_cannot_learn_from_is_refused(
    jobs: ModuleType,
    tiny_inputs: Path,
    tmp_path: Path,
    labels: list[str] | None,
    rows: list[str],
    split: str,
    says: str,
) -> None:
    data = jobs.artifact(dataset(tmp_path / "d", labels, rows), "dataset", stage="functions")
    with pytest.raises(StageError, match="functions") as caught:
        TextClassification().features(data, split, load_tokenizer(tiny_inputs / "tokenizer"), 16)
    assert says in str(caught.value)


def test_a_split_without_rows_is_refused(jobs: ModuleType, tiny_inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_inputs / "dataset", tmp_path / "d")
    table = pq.read_table(tmp_path / "d/test/0.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "d/test/0.parquet")
    with pytest.raises(StageError, match="split 'test' is empty"):
        data = jobs.artifact(tmp_path / "d", "dataset")
        TextClassification().features(data, "test", load_tokenizer(tiny_inputs / "tokenizer"), 16)
