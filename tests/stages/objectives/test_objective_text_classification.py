"""Text classification: metrics against scikit-learn for any weighting, and what it refuses to read."""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    log_loss,
    matthews_corrcoef,
    precision_recall_fscore_support,
    roc_auc_score,
)
from sklearn.utils.class_weight import compute_class_weight

from infra.errors import StageError
from tasks.models.inputs import model_inputs
from tasks.objective import objective
from tasks.objectives.text.text_classification import TextClassification
from tasks.processors.tokenizer import Tokenizer, load_tokenizer
from tasks.training.loop.result import TrainResult
from tasks.training.settings import WithObjective


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
        by_class = precision_recall_fscore_support(labels, guesses, sample_weight=w, zero_division=0)
        expected = {
            "accuracy": accuracy_score(labels, guesses, sample_weight=w),
            "precision_macro": precision,
            "recall_macro": recall,
            "f1_macro": f1,
            "roc_auc_ovr": roc_auc_score(np.eye(4)[labels], probabilities, sample_weight=w),
            "average_precision_macro": average_precision_score(np.eye(4)[labels], probabilities, sample_weight=w),
            "cross_entropy": log_loss(labels, probabilities, sample_weight=w),
            "brier": brier_score_loss(labels, probabilities, sample_weight=w),
            "mcc": matthews_corrcoef(labels, guesses, sample_weight=w),
            **{
                f"{name}@#{c}": values[c]
                for name, values in zip(("precision", "recall", "f1"), by_class, strict=False)
                for c in range(4)
            },
        }
        assert found.keys() - expected.keys() == {"ece"}
        assert {name: found[name][row] for name in expected} == pytest.approx(expected, abs=1e-9)


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
    features = TextClassification().bound(Tokenizer(tokenizer, 16)).examples(data, "test")
    table = pq.read_table(tiny_inputs / "dataset/test/0.parquet").to_pylist()
    names = TextClassification().head(data)["id2label"]
    assert [names[f["label"]] for f in features] == [row["label"] for row in table]
    assert max(len(f["input_ids"]) for f in features) == 16
    for feature, row in zip(features, table, strict=True):
        assert feature["input_ids"].tolist() == tokenizer(row["text"])["input_ids"][:16]


def test_padding_does_not_change_a_prediction(jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path) -> None:
    from transformers import AutoModelForTokenClassification

    data = jobs.artifact(tiny_inputs / "dataset", "dataset")
    features = (
        TextClassification().bound(Tokenizer(load_tokenizer(tiny_inputs / "tokenizer"), 40)).examples(data, "test")
    )
    model = tiny.model(auto=AutoModelForTokenClassification, vocabulary=320, **TextClassification().head(data))
    short = min(features, key=lambda f: len(f["input_ids"]))
    alone, together = (
        TextClassification().collate([short]),
        TextClassification().collate([short, *features[:3]]),
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
        TextClassification().bound(Tokenizer(load_tokenizer(tiny_inputs / "tokenizer"), 16)).examples(data, split)
    assert says in str(caught.value)


def test_a_split_without_rows_is_refused(jobs: ModuleType, tiny_inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_inputs / "dataset", tmp_path / "d")
    table = pq.read_table(tmp_path / "d/test/0.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "d/test/0.parquet")
    with pytest.raises(StageError, match="split 'test' is empty"):
        data = jobs.artifact(tmp_path / "d", "dataset")
        TextClassification().bound(Tokenizer(load_tokenizer(tiny_inputs / "tokenizer"), 16)).examples(data, "test")
    (tmp_path / "d/test/0.parquet").unlink()  # as the dataset stage leaves it: no file, so no columns either
    with pytest.raises(StageError, match="split 'test' is empty"):
        TextClassification(problem="regression", target="x").bound(Tokenizer(None, 16)).examples(data, "test")


# --- training ---------------------------------------------------------------------------------------------------------

STEPS = 12
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}


def examples(problem: str, *, weights: bool = False) -> list[dict[str, Any]]:
    """Rows of unequal lengths; what is to be told follows from their first token, and class 0 is rare."""
    random, found = np.random.default_rng(0), []
    for length in random.integers(4, 17, 40):
        ids = random.integers(3, 50, length)
        truth: Any = min(2, int(ids[0] - 3) // 8)
        if problem == "multi_label":
            truth = np.array([ids[0] % 2, ids[0] % 3 == 0], np.int8)
        elif problem == "regression":
            truth = float(ids[0]) / 25 - 1
        found.append({"input_ids": ids, "label": truth})
    if weights:
        counts = np.bincount([f["label"] for f in found], minlength=3)
        balanced = (40 / (3 * counts)).astype(np.float32)
        return [{**f, "class_weights": balanced} for f in found]
    return found


def own_loss(model: Any, rows: Any, batch: Any) -> torch.Tensor:
    """Hugging Face's own."""
    given = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    found: torch.Tensor = model(**given).loss
    return found


def torch_weighted(model: Any, rows: Any, batch: Any) -> torch.Tensor:
    """torch's weighted and smoothed mean over the whole batch, of the mean over the tokens."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    scores = torch.stack([row[: int(n)].mean(0) for row, n in zip(logits, batch["attention_mask"].sum(1), strict=True)])
    return torch.nn.functional.cross_entropy(scores, batch["labels"], batch["class_weights"], label_smoothing=0.1)


@pytest.mark.parametrize(
    ("options", "type", "loss"),
    [
        ({"pooling": "model"}, "bert", own_loss),
        ({"pooling": "model"}, "llama", own_loss),
        ({"pooling": "model", "problem": "multi_label", "labels": "tags"}, "bert", own_loss),
        ({"pooling": "model", "problem": "regression", "target": "x"}, "bert", own_loss),
        ({"class_weights": "balanced", "label_smoothing": 0.1}, "llama", torch_weighted),
    ],
    ids=["single-bert", "single-llama", "multi", "regression", "weighted"],
)
def test_parity_with_a_bare_loop_over_hugging_faces_own_loss(
    parity: Any, tiny: ModuleType, options: dict[str, Any], type: str, loss: Any
) -> None:
    """Class weights: micro-batches hold different sums of weights, so that a mean of means would be another loss."""
    chosen = TextClassification.model_validate(options)
    size = {"single_label": 3, "multi_label": 2, "regression": 1}[chosen.problem]
    head = {"num_labels": size, **({"problem_type": chosen._problem_type} if chosen.pooling == "model" else {})}
    parity(
        chosen,
        examples(chosen.problem, weights=chosen.class_weights == "balanced"),
        lambda: tiny.model(type, getattr(transformers, chosen.auto_class), **head, **NO_DROPOUT),
        mean_loss=loss,
        falls=0.05,
    )


def test_what_a_split_leaves_undefined_is_left_out(tiny: ModuleType) -> None:
    """No example of class 0 and none taken for it: its own metrics are no numbers, which no manifest could hold."""
    features = [feature for feature in examples("single_label") if feature["label"] == 2]
    model = tiny.model(auto=transformers.AutoModelForTokenClassification, num_labels=3, classifier_dropout=0.0)
    with torch.no_grad():
        model.score.weight.zero_()
        model.score.bias.copy_(torch.tensor([-1.0, 1.0, 2.0]))
    metrics = TrainResult.untrained(model, TextClassification(), features).metrics()
    assert metrics["validation_accuracy"] == metrics["validation_f1@LABEL_2"] == 1
    assert "validation_f1@LABEL_0" not in metrics and "validation_roc_auc_ovr" not in metrics
    json.dumps(metrics, allow_nan=False)


def test_soft_losses_by_hand() -> None:
    """Zero for the teacher itself; of several labels the mean over them, as a two-class softmax of (x, 0)."""
    random = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 3, generator=random) for _ in range(2))
    multi = TextClassification(problem="multi_label", labels="tags", pooling="model")
    number = TextClassification(problem="regression", target="x", pooling="model")
    assert float(multi.distillation_loss({"logits": teacher}, {"logits": teacher}, {}, 2.0)) == pytest.approx(
        0, abs=1e-6
    )
    p, q = torch.sigmoid(teacher / 2), torch.sigmoid(student / 2)
    divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(
        multi.distillation_loss({"logits": student}, {"logits": teacher}, {}, 2.0), 4 * divergence.mean(1).sum()
    )
    expected = (student[:, :1] - teacher[:, :1]).square().sum()
    torch.testing.assert_close(
        number.distillation_loss({"logits": student[:, :1]}, {"logits": teacher[:, :1]}, {}, 2.0), expected
    )
    weighted = TextClassification(class_weights="balanced", pooling="model")
    batch = {"labels": torch.tensor([0, 1, 2, 2]), "class_weights": torch.tensor([2.0, 0.0, 1.0])}
    plain = TextClassification(pooling="model")
    first, _, third, fourth = (
        plain.distillation_loss(
            {"logits": student[i : i + 1]}, {"logits": teacher[i : i + 1]}, {"labels": batch["labels"][i : i + 1]}, 2.0
        )
        for i in range(4)
    )
    torch.testing.assert_close(
        weighted.distillation_loss({"logits": student}, {"logits": teacher}, batch, 2.0), 2 * first + third + fourth
    )
    assert weighted.units(batch) == 4.0


# --- pairs, sets of labels, numbers: from the columns to the gate -----------------------------------------------------


@pytest.fixture(scope="module")
def words(whole_way: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two texts of words each; the label is in the second, the tags in the first, the number is a share of it."""
    random = np.random.default_rng(0)
    first = [[whole_way.WORDS[i] for i in random.integers(0, 12, n)] for n in random.integers(3, 7, 150)]
    second = [[whole_way.WORDS[i] for i in random.integers(3, 12, n)] for n in random.integers(1, 4, 150)]
    kinds = random.integers(0, 3, 150)
    tags = [sorted({w for w in text if w in ("red", "dog", "run")}) for text in first]
    columns = {
        "text": [" ".join(text) for text in first],
        "second": [" ".join([*text, whole_way.WORDS[kind]]) for text, kind in zip(second, kinds, strict=True)],
        "label": [whole_way.WORDS[kind] for kind in kinds],
        "tags": [json.dumps(found) for found in tags],
        "share": pa.array([sum(w in whole_way.WORDS[:6] for w in text) / len(text) for text in first], pa.float32()),
    }
    folder: Path = whole_way.dataset(tmp_path_factory.mktemp("words") / "data", columns, ["blue", "green", "red"])
    return folder


@pytest.mark.parametrize(
    ("options", "type", "rate", "metric", "least"),
    [
        ({"pair": "second", "pooling": "model", "class_weights": "balanced"}, "bert", 5e-3, "f1_macro", 0.6),
        ({"problem": "multi_label", "labels": "tags"}, "llama", 1e-2, "f1_micro", 0.6),
        ({"problem": "regression", "target": "share"}, "llama", 5e-3, "spearman", 0.5),
    ],
    ids=["pair", "multi", "regression"],
)
def test_each_problem_goes_the_whole_way(
    jobs: ModuleType,
    tiny: ModuleType,
    whole_way: ModuleType,
    tiny_inputs: Path,
    words: Path,
    tmp_path: Path,
    options: dict[str, Any],
    type: str,
    rate: float,
    metric: str,
    least: float,
) -> None:
    model = tiny.model(type, transformers.AutoModel, vocabulary=320)
    base = whole_way.base(tmp_path / "base", tiny_inputs / "tokenizer", model, 40)
    found = whole_way.go(
        jobs,
        tmp_path,
        {"name": "text_classification", **options},
        base,
        words,
        finetune={"epochs": 8, "learning_rate": rate},
        distill={"epochs": 4, "learning_rate": rate},
        require=[{"metric": metric, "max_drop": 1e-3, "confidence": 0.95}],
    )
    scores = found["scores"]
    assert scores["primary_metric"] == metric and found["verdict"]["passed"]
    (baseline,) = scores["baselines"].values()
    values = {name: model["metrics"][metric]["value"] for name, model in scores["models"].items()}
    assert values["teacher"] > max(least, baseline + 0.1) and values["student"] > baseline
    assert values["onnx"] == pytest.approx(values["student"], abs=1e-3)
    assert values["int8"] == pytest.approx(values["student"], abs=0.25)
    assert found["teacher"][f"validation_{metric}"] > baseline
    labels = {"f1_macro": "f1@blue", "f1_micro": "f1@dog"}
    if metric in labels:
        assert 0 <= scores["models"]["teacher"]["metrics"][labels[metric]]["value"] <= 1
        assert f"validation_{labels[metric]}" in found["teacher"], "the loop knows the names from the model"
    assert ("confusion" in scores["models"]["teacher"]) == (metric == "f1_macro")
    config = json.loads((tmp_path / "teacher/output/config.json").read_text())
    assert config.get("problem_type") == ("single_label_classification" if "pooling" in options else None)
    samples = json.loads((tmp_path / "teacher/records/samples.json").read_text())
    assert len(samples) == 8 and all(all(sample.values()) and len(sample) == 3 for sample in samples)
    if "pair" in options:
        graph = onnxruntime.InferenceSession(str(tmp_path / "onnx/output/model.onnx"))
        assert {given.name for given in graph.get_inputs()} == {"input_ids", "attention_mask", "token_type_ids"}


def test_a_pair_is_joined_by_the_tokenizer_and_stays_whole_where_its_text_is_changed(
    jobs: ModuleType, tiny_inputs: Path, words: Path
) -> None:
    tokenizer, data = load_tokenizer(tiny_inputs / "tokenizer"), jobs.artifact(words, "dataset")
    assert tokenizer is not None
    chosen = TextClassification(pair="second")
    features = chosen.bound(Tokenizer(tokenizer, 64)).examples(data, "test")
    table = pq.read_table(words / "test/0.parquet").to_pylist()
    for feature, row in zip(features, table, strict=True):
        given = tokenizer(row["text"], row["second"], return_token_type_ids=True)
        assert feature["input_ids"].tolist() == given["input_ids"]
        assert feature["token_type_ids"].tolist() == given["token_type_ids"] and 1 in given["token_type_ids"]
    changed = chosen.bound(Tokenizer(tokenizer, 64)).with_text(features[0], "plum")
    assert changed["input_ids"].tolist() == tokenizer("plum", table[0]["second"])["input_ids"]
    batch = chosen.collate(features[:4])
    assert batch["token_type_ids"].shape == batch["input_ids"].shape


@pytest.mark.parametrize("options", [{"pooling": "model"}, {"pair": "second", "pooling": "model"}, {"pair": "second"}])
def test_padding_changes_no_prediction_of_pairs_and_of_hugging_faces_head(
    jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path, words: Path, options: dict[str, Any]
) -> None:
    chosen = TextClassification.model_validate(options)
    data = jobs.artifact(words, "dataset")
    features = sorted(
        chosen.bound(Tokenizer(load_tokenizer(tiny_inputs / "tokenizer"), 64)).examples(data, "test"), key=chosen.length
    )
    auto = getattr(transformers, chosen.auto_class)
    model = tiny.model("bert" if "pair" in options else "llama", auto, vocabulary=320, **chosen.head(data))
    with torch.no_grad():
        a, b = (
            chosen.scores(model(**model_inputs(batch, model)).logits, batch)
            for batch in (chosen.collate(features[:1]), chosen.collate(features))
        )
    torch.testing.assert_close(a[0], b[0], atol=1e-5, rtol=0)


def test_balanced_weights_are_scikit_learns(jobs: ModuleType, tiny_inputs: Path, words: Path) -> None:
    chosen, data = TextClassification(class_weights="balanced"), jobs.artifact(words, "dataset")
    tokenizer = load_tokenizer(tiny_inputs / "tokenizer")
    labels = pq.read_table(words / "train/0.parquet")["label"].to_pylist()
    expected = compute_class_weight("balanced", classes=np.array(["blue", "green", "red"]), y=labels)
    for split in ("train", "validation"):
        features = chosen.bound(Tokenizer(tokenizer, 16)).examples(data, split)
        np.testing.assert_allclose(features[0]["class_weights"], expected, rtol=1e-6)


def test_baselines_of_label_sets_and_numbers() -> None:
    multi = TextClassification(problem="multi_label", labels="tags")
    train = [{"label": np.array(row)} for row in ([1, 1, 0], [1, 0, 0], [1, 1, 1])]
    heldout = [{"label": np.array(row)} for row in ([1, 0, 0], [0, 1, 1])]
    # Labels 0 and 1 are named for both: two of four claims are right, of three labels there are.
    assert multi.baselines(train, heldout) == {"majority": pytest.approx(2 * 2 / (4 + 3))}
    number = TextClassification(problem="regression", target="x")
    falling = [{"input_ids": np.zeros(n), "label": -float(n)} for n in (1, 5, 9)]
    assert number.baselines(falling, falling) == {"length": pytest.approx(1.0)}
    flat = [{"input_ids": np.zeros(3), "label": float(n)} for n in (1, 5)]
    assert number.baselines(flat, flat) == {"length": 0.0}


@pytest.mark.parametrize(
    ("options", "columns", "says"),
    [
        ({"pair": "other"}, {}, "no column 'other'"),
        ({"problem": "multi_label", "labels": "tags"}, {}, "no column 'tags'"),
        ({"problem": "multi_label", "labels": "tags"}, {"tags": ['["x"]', '{"x": 1}'] * 5}, "holds no list of labels"),
        ({"problem": "multi_label", "labels": "tags"}, {"tags": ["[]"] * 10}, "no training example has a label"),
        (
            {"problem": "multi_label", "labels": "tags"},
            {"tags": ['["y"]', *['["x"]'] * 9]},
            "no training example has: 'y'",
        ),
        ({"problem": "regression", "target": "x"}, {}, "no column 'x'"),
        (
            {"problem": "regression", "target": "x"},
            {"x": [1.0, None] * 5},
            "'row005' of split 'validation' has no value",
        ),
        ({"problem": "regression", "target": "x"}, {"x": [1.0, math.nan] * 5}, "nan, which is no finite number"),
        ({"problem": "regression", "target": "x"}, {"x": ["1.0"] * 10}, "'1.0', which is no finite number"),
        ({"class_weights": "balanced"}, {"label": ["b", *["a"] * 9]}, "has no example of class 'b'"),
    ],
)
def test_columns_it_cannot_learn_from_are_refused(
    jobs: ModuleType,
    whole_way: ModuleType,
    tiny_inputs: Path,
    tmp_path: Path,
    options: dict[str, Any],
    columns: dict[str, Any],
    says: str,
) -> None:
    given = {"text": ["one"] * 10, "label": ["a", "b"] * 5, **columns}
    data = jobs.artifact(whole_way.dataset(tmp_path / "d", given, ["a", "b"]), "dataset", stage="data")
    with pytest.raises(StageError, match="data: ") as caught:
        TextClassification.model_validate(options).bound(
            Tokenizer(load_tokenizer(tiny_inputs / "tokenizer"), 16)
        ).examples(data, "validation")
    assert says in str(caught.value) and caught.value.hint


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"problem": "multi_label"}, "problem: multi_label needs `labels`"),
        ({"target": "x"}, "`target` is for problem: regression"),
        ({"problem": "regression", "target": "x", "label_smoothing": 0.1}, "are for problem: single_label"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        objective({"name": "text_classification", **options})


def test_an_option_that_is_misspelt_is_named_with_the_one_that_was_meant() -> None:
    with pytest.raises(ValueError, match="text_classification has no option `lables`; did you mean labels"):
        WithObjective.model_validate({"objective": {"name": "text_classification", "lables": "tags"}})


def test_models_that_were_trained_in_other_ways_are_compared_and_those_for_other_problems_not() -> None:
    first = TextClassification(class_weights="balanced", pooling="model")
    assert first.model_dump(exclude=set(first.training_options)) == TextClassification().model_dump(
        exclude=set(first.training_options)
    )
    assert "pair" not in first.training_options and "problem" not in first.training_options
