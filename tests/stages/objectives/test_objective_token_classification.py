"""Token classification: labels on the right pieces, metrics of seqeval and scikit-learn, parity, and every stage."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from seqeval.metrics import accuracy_score
from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support
from sklearn.metrics import precision_recall_fscore_support as tag_scores
from transformers import AutoModelForTokenClassification

from infra.errors import StageError
from tasks.metrics.direction import greater_is_better
from tasks.metrics.tagging import spans
from tasks.models.card import ModelCard, read_card
from tasks.models.inputs import model_inputs
from tasks.objective import objective
from tasks.objectives.text.token_classification import TokenClassification
from tasks.processors.tokenizer import Tokenizer, load_tokenizer
from tasks.release.gate.judging import read_replicates
from tasks.stage import stages

LABELS = ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")
NAMES = ("paris", "london", "sydney", "florence", "austin")
FILLERS = ("we", "saw", "met", "yesterday", "then", "again")


def sentences(count: int, seed: int) -> list[dict[str, Any]]:
    """A name after `mr` is a person, after `in` a place, so that the word alone does not tell; one or two words long."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        words, tags = [], []
        for _ in range(int(random.integers(1, 4))):
            words += list(random.choice(FILLERS, int(random.integers(1, 4))))
            kind = int(random.integers(2))
            names = list(random.choice(NAMES, int(random.integers(1, 3))))
            words += [("mr", "in")[kind], *names]
            tags += ["O"] * (len(words) - len(tags) - len(names))
            tags += [f"{'BI'[i > 0]}-{('PER', 'LOC')[kind]}" for i in range(len(names))]
        rows.append({"words": [str(word) for word in words], "tags": tags})
    return rows


@pytest.fixture(scope="module")
def tokenizer(tiny: ModuleType) -> Any:
    return tiny.word_tokenizer(["mr", "in", *NAMES[:3], *FILLERS])


@pytest.fixture(scope="module")
def data(tiny: ModuleType, jobs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    splits = {"train": sentences(160, 0), "validation": sentences(40, 1), "test": sentences(60, 2)}
    return jobs.artifact(tiny.write_rows(tmp_path_factory.mktemp("tagged") / "d", splits), "dataset", stage="names")


def written(jobs: ModuleType, tiny: ModuleType, folder: Path, **splits: list[dict[str, Any]]) -> Any:
    return jobs.artifact(tiny.write_rows(folder / "d", splits), "dataset", stage="names")


def test_a_words_label_stands_on_its_first_piece(jobs: ModuleType, tiny: ModuleType, tmp_path: Path) -> None:
    """`florence` and `unseen` are spelled in letters: only their first piece counts, or all, then going on as inside."""
    row = {
        "words": ["mr", "florence", "unseen", "saw", "", "paris"],
        "tags": ["O", "B-PER", "I-PER", "O", "O", "B-LOC"],
    }
    data = written(jobs, tiny, tmp_path, train=[row])
    tokenizer = tiny.word_tokenizer(["mr", "saw", "paris"])
    for all_pieces in (False, True):
        found = (
            TokenClassification(label_all_pieces=all_pieces).bound(Tokenizer(tokenizer, 64)).examples(data, "train")[0]
        )
        labels = ("O", "B-LOC", "B-PER", "I-PER")
        assert tuple(TokenClassification().head(data)["label2id"]) == labels
        pieces = tokenizer.convert_ids_to_tokens(found["input_ids"].tolist())
        shown = [(p, labels[n] if n >= 0 else "-") for p, n in zip(pieces, found["labels"].tolist(), strict=True)]
        inside = "I-PER" if all_pieces else "-"
        assert shown == [
            ("[CLS]", "-"), ("mr", "O"),
            ("f", "B-PER"), *((f"##{c}", inside) for c in "lorence"),
            ("u", "I-PER"), *((f"##{c}", inside) for c in "nseen"),
            ("saw", "O"), ("paris", "B-LOC"), ("[SEP]", "-"),
        ]  # fmt: skip
        assert found["starts"].tolist() == [1, 2, 10, 16, -1, 17]


def test_byte_level_words_are_those_of_running_text(jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path) -> None:
    """Such a tokenizer knows a word by the space before it: without one every word looks like the end of another."""
    from tasks.objectives.text.inputs.tagged_words import word_pieces

    tokenizer = load_tokenizer(tiny_inputs / "tokenizer")
    assert tokenizer is not None
    words = ["return", "the", "self", "value"]
    found = word_pieces([words], tokenizer, 64)[0]
    assert found.input_ids.tolist() == tokenizer(" " + " ".join(words))["input_ids"]
    assert found.input_ids.tolist() != tokenizer("".join(words))["input_ids"]
    assert sorted(set(found.words.tolist())) == [0, 1, 2, 3]


def random_tags(count: int, labels: tuple[str, ...], seed: int) -> np.ndarray:
    """[count, 12], rows of unequal lengths; tags follow no rule, so that BIO is broken in every way there is."""
    random = np.random.default_rng(seed)
    tags = random.integers(0, len(labels), (count, 12))
    tags[np.arange(12)[None] >= random.integers(1, 13, count)[:, None]] = -1
    return tags


def spelled(tags: np.ndarray, truth: np.ndarray, labels: tuple[str, ...]) -> list[list[str]]:
    return [
        [labels[t] for t, known in zip(row, real, strict=True) if known >= 0]
        for row, real in zip(tags, truth, strict=True)
    ]


def test_spans_are_those_of_seqeval() -> None:
    labels = (*LABELS, "I-A-B", "B-A-B", "I-only")
    tags = random_tags(400, labels, 0)
    kinds, ends = spans(tags, labels)
    types = ["A-B", "LOC", "PER", "only"]
    for row, kind, end, words in zip(tags, kinds, ends, spelled(tags, tags, labels), strict=True):
        mine = [(types[kind[i]], int(i), int(end[i]) - 1) for i in np.flatnonzero(kind >= 0)]
        assert mine == get_entities(words), row


def kept(chosen: TokenClassification, truth: np.ndarray, guess: np.ndarray) -> dict[str, np.ndarray]:
    """Predictions as evaluation keeps them, of logits that make these guesses; the first piece of a word is its last."""
    logits = np.eye(len(chosen._labels), dtype=np.float32)[np.maximum(guess, 0)][:, ::-1]
    starts = np.where(truth >= 0, np.arange(truth.shape[1])[::-1][None], -1)
    return chosen.predictions({"logits": logits}, {"tags": truth, "starts": starts})


def test_span_metrics_equal_seqeval_under_every_weighting() -> None:
    chosen = TokenClassification().bound(labels=LABELS)
    truth, other = random_tags(80, LABELS, 1), random_tags(80, LABELS, 2)
    guess = np.where(np.random.default_rng(3).random(truth.shape) < 0.6, truth, np.maximum(other, 0))
    found = kept(chosen, truth, guess)
    weights = np.random.default_rng(4).multinomial(80, np.ones(80) / 80, size=5).astype(float)
    weights[0], weights[1] = 1.0, np.r_[1.0, np.zeros(79)]
    metrics = chosen.metrics(found, weights)
    said, guessed = spelled(truth, truth, LABELS), spelled(guess, truth, LABELS)
    for row, w in enumerate(weights.astype(int)):
        # A weight of two is the example standing there twice.
        y, z = ([tags for tags, times in zip(part, w, strict=True) for _ in range(times)] for part in (said, guessed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            micro, macro = (
                precision_recall_fscore_support(y, z, average=a, zero_division=0) for a in ("micro", "macro")
            )
            each = precision_recall_fscore_support(y, z, average=None, zero_division=0)[2]
            types = sorted({t for s in (*y, *z) for t, _, _ in get_entities(s)})
        expected = dict(zip(("span_precision", "span_recall", "span_f1"), micro[:3], strict=True))
        expected |= dict(zip(("span_precision_macro", "span_recall_macro", "span_f1_macro"), macro[:3], strict=True))
        expected |= {"accuracy": accuracy_score(y, z), "f1@LOC": 0.0, "f1@PER": 0.0}
        expected |= {f"f1@{type}": value for type, value in zip(types, each, strict=True)}
        assert {name: values[row] for name, values in metrics.items()} == pytest.approx(expected, abs=1e-12)


def test_plain_tag_metrics_equal_scikit_learn() -> None:
    labels = ("DT", "NN", "VB", "a/b", "never")
    chosen = TokenClassification(scheme="none").bound(labels=labels)
    assert (chosen.primary_metric, TokenClassification().primary_metric) == ("f1_macro", "span_f1")
    truth, other = random_tags(60, labels[:4], 1), random_tags(60, labels[:4], 2)
    guess = np.where(np.random.default_rng(3).random(truth.shape) < 0.6, truth, np.maximum(other, 0))
    weights = np.random.default_rng(4).multinomial(60, np.ones(60) / 60, size=4).astype(float)
    metrics = chosen.metrics(kept(chosen, truth, guess), weights)
    real = truth >= 0
    for row, w in enumerate(weights):
        given = {"sample_weight": np.repeat(w, real.sum(1)), "zero_division": 0, "labels": range(4)}
        macro = tag_scores(truth[real], guess[real], average="macro", **given)[:3]
        expected = dict(zip(("precision_macro", "recall_macro", "f1_macro"), macro, strict=True))
        expected["accuracy"] = np.average(truth[real] == guess[real], weights=given["sample_weight"])
        each = tag_scores(truth[real], guess[real], average=None, **given)[2]
        expected |= {f"f1@{name}": value for name, value in zip(labels, (*each, 0.0), strict=True)}
        assert {name: values[row] for name, values in metrics.items()} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("scheme", ["bio", "none"])
def test_nothing_is_gained_by_cutting(
    jobs: ModuleType, tiny: ModuleType, tokenizer: Any, tmp_path: Path, scheme: str
) -> None:
    """Only `[CLS] mr paris [SEP]` is seen; the other six words count, and a perfect model gets no more than it saw."""
    tags = {"bio": ["O", "B-PER", "O", "O", "B-LOC", "I-LOC", "O", "B-PER"], "none": list("XNXVNNVN")}[scheme]
    row = {"words": ["mr", "paris", "we", "in", "london", "sydney", "mr", "paris"], "tags": tags}
    data = written(jobs, tiny, tmp_path, train=[row])
    chosen = TokenClassification(scheme=scheme)
    chosen = chosen.bound(labels=list(chosen.head(data)["label2id"]))
    batch = chosen.collate(chosen.bound(Tokenizer(tokenizer, 4)).examples(data, "train"))
    logits = np.eye(len(chosen._labels), dtype=np.float32)[np.maximum(batch["labels"].numpy(), 0)]
    found = chosen.predictions({"logits": logits}, {name: tensor.numpy() for name, tensor in batch.items()})
    values = {name: float(v[0]) for name, v in chosen.metrics(found, np.ones((1, 1))).items()}
    if scheme == "bio":
        assert values["span_recall"] == pytest.approx(1 / 3) and values["span_precision"] == 1
        assert values["accuracy"] == pytest.approx(5 / 8), "three words cut off had a tag"
    else:
        assert values["accuracy"] == pytest.approx(2 / 8), "without an O, what is cut off is wrong"


def test_balanced_weights_and_smoothing_are_those_of_torch(tiny: ModuleType, tokenizer: Any, data: Any) -> None:
    from sklearn.utils.class_weight import compute_class_weight

    chosen = TokenClassification(class_weights="balanced", label_smoothing=0.1)
    features = chosen.bound(Tokenizer(tokenizer, 32)).examples(data, "validation")
    batch = chosen.collate(features[:5])
    seen = np.concatenate([f["tags"] for f in chosen.bound(Tokenizer(tokenizer, 64)).examples(data, "train")])
    weights = compute_class_weight("balanced", classes=np.arange(5), y=seen)
    np.testing.assert_allclose(batch["class_weights"].numpy(), weights, rtol=1e-6)
    logits = torch.randn(*batch["labels"].shape, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.CrossEntropyLoss(torch.tensor(weights).float(), reduction="sum", label_smoothing=0.1)(
        logits.flatten(0, 1), batch["labels"].flatten()
    )
    total, units = chosen.loss({"logits": logits}, batch)
    torch.testing.assert_close(total, expected)
    assert units == sum((f["labels"] >= 0).sum() for f in features[:5])


def test_parity_with_a_bare_loop_over_the_models_own_loss(
    parity: Any, tiny: ModuleType, tokenizer: Any, data: Any
) -> None:
    """Micro-batches of two hold other numbers of labelled words than four of them together: a mean of means would drift."""
    chosen = TokenClassification()
    chosen = chosen.bound(labels=list(chosen.head(data)["label2id"]))
    features = chosen.bound(Tokenizer(tokenizer, 24)).examples(data, "train")[:40]
    assert len({int((f["labels"] >= 0).sum()) for f in features}) > 4
    shape = {"vocabulary": len(tokenizer), "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    parity(
        chosen,
        features,
        lambda: tiny.model("bert", AutoModelForTokenClassification, **shape, **chosen.head(data)),
        mean_loss=lambda model, rows, batch: model(**model_inputs(batch, model), labels=batch["labels"]).loss,
        rate=5e-3,
        falls=0.5,
    )


def test_padding_does_not_change_a_prediction(tiny: ModuleType, tokenizer: Any, data: Any) -> None:
    chosen = TokenClassification()
    chosen = chosen.bound(labels=list(chosen.head(data)["label2id"]))
    features = sorted(chosen.bound(Tokenizer(tokenizer, 64)).examples(data, "test"), key=chosen.length)
    model = tiny.model(
        "bert", AutoModelForTokenClassification, vocabulary=len(tokenizer), initializer_range=0.3, **chosen.head(data)
    )
    alone = chosen.collate(features[:1])
    together = chosen.collate([features[0], features[-1]])
    assert together["input_ids"].shape[1] > alone["input_ids"].shape[1]
    with torch.no_grad():
        a, b = (model(**model_inputs(batch, model)).logits for batch in (alone, together))
    torch.testing.assert_close(a[0], b[0, : a.shape[1]], atol=1e-5, rtol=0)
    found = [
        chosen.predictions({"logits": logits.numpy()}, {name: tensor.numpy() for name, tensor in batch.items()})
        for logits, batch in ((a, alone), (b, together))
    ]
    assert all(np.array_equal(found[0][name][0], found[1][name][0]) for name in found[0])


def test_baselines_by_hand() -> None:
    chosen = TokenClassification(scheme="none").bound(labels=["N", "V"])
    train = [{"words": ["run", "dog", "dog", "run", "run"], "tags": np.array([0, 0, 0, 1, 1])}]
    heldout = [{"words": ["dog", "run"], "tags": np.array([0, 1])}, {"words": ["new"], "tags": np.array([1])}]
    # majority: all N, F1 of N 1/2, of V 0. unigram: dog N, run V, new N: F1 of N and of V 2/3.
    assert chosen.baselines(train, heldout) == pytest.approx({"majority": 0.25, "unigram": 2 / 3})


def test_every_stage(jobs: ModuleType, tiny: ModuleType, tokenizer: Any, data: Any, tmp_path: Path) -> None:
    model = tiny.model("llama", vocabulary=len(tokenizer))
    base = tiny.write_model(tmp_path / "base", model, tokenizer, 40)
    common = {"learning_rate": 1e-2, "global_batch_size": 8}
    found = tiny.stage_chain(
        jobs, tmp_path, base, data.path,
        finetune={"objective": {"name": "token_classification", "label_all_pieces": True}, "epochs": 6, **common},
        distill={"layers": 1, "epochs": 4, **common},
    )  # fmt: skip
    assert found["finetune"]["validation_span_f1"] > found["finetune"]["baseline_unigram"] + 0.2
    assert found["finetune"]["baseline_majority"] == 0
    assert min(found["evaluate"].values()) > 0.8 and len(found["evaluate"]) == 4
    card = read_card(tmp_path / "quantize/output")
    assert card.labels == list(LABELS) and card.objective.model_dump()["label_all_pieces"]
    assert found["prune"]["parameters_ratio"] < 1 and found["prune"]["validation_span_f1"] > 0.5
    scores = json.loads((tmp_path / "evaluate/output/scores.json").read_text())
    assert (scores["primary_metric"], scores["labels"]) == ("span_f1", list(LABELS))
    assert {"f1@PER", "f1@LOC", "span_f1_macro", "accuracy"} <= set(scores["models"]["quantize"]["metrics"])
    samples = json.loads((tmp_path / "evaluate/records/samples.json").read_text())["finetune"]
    assert any(s["truth"] == s["prediction"] and "](PER)" in s["truth"] for s in samples)
    require = [
        {"metric": "span_f1", "max_drop": 0.2},
        {"metric": "f1@PER", "min": 0.5},
    ]
    gate = stages()["gate"]
    given = {"scores": "e", "candidate": "quantize", "against": "finetune", "require": require}
    job = jobs.make_job(
        tmp_path / "gate",
        gate.params.model_validate(given),
        {"scores": jobs.artifact(tmp_path / "evaluate/output", "scores")},
    )
    assert gate.run(job)["passed"] == 1


def test_a_model_is_judged_by_its_own_classes(
    jobs: ModuleType, tiny: ModuleType, tokenizer: Any, data: Any, tmp_path: Path
) -> None:
    """Data without a training split, or with fewer tags: the numbers are those the model was trained with."""
    card = ModelCard.of(TokenClassification(class_weights="balanced"), 40, TokenClassification().head(data))
    few = written(jobs, tiny, tmp_path, test=[{"words": ["in", "paris"], "tags": ["O", "B-LOC"]}])
    found = card.objective.bound(Tokenizer(tokenizer, 40)).examples(few, "test")
    assert [LABELS[n] for n in found[0]["tags"]] == ["O", "B-LOC"]
    assert card.objective == objective({"name": "token_classification", "class_weights": "balanced"}).bound(
        labels=LABELS
    )


GOOD = {"words": ["in", "paris"], "tags": ["O", "B-LOC"]}


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        ({"train": [GOOD, {"words": ["a", "b"], "tags": ["O"]}]}, {}, "train#1: 2 words and 1 tags"),
        ({"train": [GOOD], "test": [{**GOOD, "tags": ["O", "B-ORG"]}]}, {}, "test#0: tag 'B-ORG'"),
        ({"train": [GOOD], "test": [{"words": ["", ""], "tags": ["O", "O"]}]}, {}, "test#0: none of its 2 words"),
        ({"train": [GOOD, {"words": [], "tags": []}]}, {}, "train#1: no words"),
        ({"train": [GOOD, {"words": "in paris", "tags": ["O"]}]}, {}, "train#1: column 'words' holds no list"),
        ({"train": [{**GOOD, "tags": ["IN", "NNP"]}]}, {}, "tag 'IN' spells no span"),
        ({"train": [{**GOOD, "tags": ["O", "O"]}]}, {}, "all words have the tag 'O'"),
        ({"train": [GOOD]}, {"words": "tokens"}, "no column 'tokens'"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(
    jobs: ModuleType, tiny: ModuleType, tokenizer: Any, tmp_path: Path,
    rows: dict[str, list[dict[str, Any]]], options: dict[str, Any], says: str,
) -> None:  # fmt: skip
    data = written(jobs, tiny, tmp_path, **rows)
    with pytest.raises(StageError, match="names") as caught:
        TokenClassification(**options).bound(Tokenizer(tokenizer, 40)).examples(data, sorted(rows)[0])
    assert says in str(caught.value)
    if "column" in says and options:
        assert "tags, words" in str(caught.value), "the columns there are"


def test_a_class_of_any_name_can_be_required(tmp_path: Path) -> None:
    """`f1@size` is no size, of which less were better, and `f1@a/b` not the metric `b` of a model `int8/f1@a`."""
    assert greater_is_better("f1@size") and not greater_is_better("size")
    save_file({"int8/f1@a/b": np.ones(3)}, tmp_path / "replicates.safetensors")
    assert list(read_replicates(tmp_path)["int8"]) == ["f1@a/b"]


def test_changed_texts_are_refused(jobs: ModuleType, tokenizer: Any, data: Any) -> None:
    from tasks.objectives.text.inputs.augmentation import Augment
    from tasks.training.loop.features import train_and_validation

    with pytest.raises(StageError, match="does not support `augment`"):
        train_and_validation(TokenClassification().bound(Tokenizer(tokenizer, 40)), data, Augment(delete=0.1))
