"""Sentence embedding: the loss by hand, groups that nothing tears apart, finding among all, and the whole way."""

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
import torch.nn.functional as F
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import AutoModel

from infra.errors import Preempted, StageError
from tasks.metrics.retrieval import ranks_of_own, retrieval_metrics
from tasks.models.inputs import model_inputs
from tasks.objectives.text.sentence_embedding import SentenceEmbedding
from tasks.processors.tokenizer import Tokenizer, load_tokenizer
from tasks.training.engine.batch import BatchSplit, split_batch
from tasks.training.loop.train import train
from tasks.training.settings import TrainingParams

STEPS = 12


def chosen(**options: Any) -> SentenceEmbedding:
    return SentenceEmbedding.model_validate({"positive": "title", "group": 4, **options})


def pairs(count: int = 40) -> list[dict[str, Any]]:
    """Texts of unequal lengths; the positive says some of the anchor's tokens in others."""
    random = np.random.default_rng(0)
    found = []
    for long, short in zip(random.integers(5, 17, count), random.integers(2, 9, count), strict=True):
        anchor = random.integers(3, 50, long)
        said = (anchor[:4] + 17) % 47 + 3
        found.append({"input_ids": anchor, "positive": np.r_[said, random.integers(3, 50, short)]})
    return found


def by_hand(model: Any, features: list[dict[str, Any]], options: SentenceEmbedding) -> torch.Tensor:
    """The mean over the anchors, every text by itself, every group by itself, as sentence-transformers' MNRL."""

    def embedded(ids: Any) -> torch.Tensor:
        hidden = model(input_ids=torch.as_tensor(ids)[None]).last_hidden_state[0].mean(0)
        return hidden / hidden.norm()

    losses = []
    for start in range(0, len(features), options.group):
        part = features[start : start + options.group]
        anchors, positives = (torch.stack([embedded(f[key]) for f in part]) for key in ("input_ids", "positive"))
        table = anchors @ positives.T / options.temperature
        own = torch.arange(len(part))
        losses.append(F.cross_entropy(table, own, reduction="none"))
        if options.symmetric:
            losses[-1] = (losses[-1] + F.cross_entropy(table.T, own, reduction="none")) / 2
    return torch.cat(losses).mean()


@pytest.mark.parametrize("options", [{}, {"symmetric": True, "temperature": 0.2}, {"group": 16}])
def test_the_loss_is_each_groups_own_cross_entropy(tiny: ModuleType, options: dict[str, Any]) -> None:
    """Ten examples, so that the last group is not full."""
    objective, features, model = chosen(**options), pairs(10), tiny.model("bert", AutoModel)
    batch = objective.collate(features)
    assert batch["input_ids"].shape[0] == 20 and objective.units(batch) == 10
    with torch.no_grad():
        total, units = objective.loss(objective.read(model(**model_inputs(batch, model))), batch)
        torch.testing.assert_close(total / units, by_hand(model, features, objective), atol=1e-5, rtol=1e-5)


def test_the_same_text_is_no_negative() -> None:
    """Two examples with one positive: neither can be told from the other, so neither is asked to be."""
    objective = chosen(group=4, temperature=1.0)
    a, b, c = (np.arange(3, 3 + n) for n in (2, 3, 4))
    features = [
        {"input_ids": a, "positive": c},
        {"input_ids": b, "positive": c},
        {"input_ids": a, "positive": b},
    ]
    batch = objective.collate(features)
    hidden = torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(0))
    (table,) = objective.similarities(hidden, batch)
    # 0 and 1 share their positive, 0 and 2 their anchor.
    assert (table < -100).tolist() == [[False, True, True], [True, False, False], [True, False, False]]
    assert torch.isfinite(objective.distillation_loss({"logits": hidden}, {"logits": hidden.flip(1) + 1}, batch, 2.0))


@pytest.mark.parametrize(("type", "micro"), [("bert", 4), ("llama", 8), ("bert", 16)])
def test_parity_with_a_bare_loop_over_the_loss_by_hand(parity: Any, tiny: ModuleType, type: str, micro: int) -> None:
    """Negatives come from the group whatever the micro-batch: without groups a smaller one would be an easier task."""
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    objective, features = chosen(temperature=0.2), pairs()
    result, _, reference = parity(
        objective,
        features,
        lambda: tiny.model(type, AutoModel, **no_dropout),
        mean_loss=lambda model, rows, batch: by_hand(model, rows, objective),
        validation=features[:10],
        batch=16,
        micro=micro,
        rate=5e-3,
        falls=0.1,
    )
    # The validation split in its own order, group by group, as it would be learned.
    with torch.no_grad():
        assert result.validation["loss"] == pytest.approx(float(by_hand(reference, features[:10], objective)), abs=1e-3)


def test_a_resumed_training_goes_on_though_nothing_reads_the_pooler(
    jobs: ModuleType, tiny: ModuleType, tmp_path: Path
) -> None:
    given = TrainingParams(max_steps=STEPS, global_batch_size=8, learning_rate=1e-2, seed=3)
    questions = iter([False] * 6 + [True])

    def end(folder: str, **more: Any) -> dict[str, torch.Tensor]:
        job = jobs.make_job(tmp_path / folder, given, **more)
        return dict(train(job, tiny.model("bert", AutoModel), chosen(), pairs(), [], given).model.named_parameters())

    straight = end("straight")
    with pytest.raises(Preempted):
        end("stopped", stop_requested=lambda: next(questions), store=tmp_path / "store")
    resumed = end("resumed", store=tmp_path / "store")
    assert "pooler.dense.weight" in straight
    assert all(torch.equal(resumed[name], value) for name, value in straight.items())


def test_micro_batches_hold_whole_groups() -> None:
    assert split_batch(32, 2, "auto", examples_per_loss=16) == BatchSplit(32, 2, 16, 16)
    assert split_batch(48, 1, "auto", examples_per_loss=8).halved() == BatchSplit(48, 1, 24, 8)
    assert BatchSplit(48, 1, 24, 8).halved() == BatchSplit(48, 1, 8, 8)
    assert BatchSplit(48, 1, 8, 8).halved() is None, "less would tear a group apart"
    with pytest.raises(StageError, match="12 each, which groups of 8 examples do not divide") as caught:
        split_batch(24, 2, "auto", examples_per_loss=8)
    assert "16, 32" in str(caught.value.hint)
    with pytest.raises(StageError, match="micro-batches of 4 would tear apart groups of 8") as caught:
        split_batch(16, 1, 4, examples_per_loss=8)
    assert "can be: 8, 16." in str(caught.value.hint)


def test_a_plan_sees_a_batch_that_groups_do_not_divide() -> None:
    from infra.execution import Execution
    from tasks.stages.finetune import Params
    from tasks.training.engine.deepspeed_config import training_faults

    given = {"model": "m", "data": "d", "objective": {"name": "sentence_embedding", "positive": "p"}, "epochs": 1}
    params = Params.model_validate({**given, "global_batch_size": 24})
    (fault,) = training_faults(params, Execution.model_validate({}))
    assert fault.path == ("global_batch_size",) and "groups of 16" in fault.message
    assert not training_faults(Params.model_validate({**given, "global_batch_size": 48}), Execution.model_validate({}))


def test_more_in_a_group_than_there_are_examples_is_refused(jobs: ModuleType, tiny: ModuleType, tmp_path: Path) -> None:
    given = TrainingParams.model_validate({"max_steps": 1, "global_batch_size": 16})
    with pytest.raises(StageError, match="16 examples have one loss, and the training split has 10"):
        train(jobs.make_job(tmp_path, given), tiny.model("bert", AutoModel), chosen(group=16), pairs(10), [], given)


def test_memory_that_runs_out_halves_down_to_a_group(jobs: ModuleType, tiny: ModuleType, tmp_path: Path) -> None:
    """The first step fails with more than a group at once: the same training goes on with groups."""
    objective, features = chosen(), pairs()

    def scarce(outputs: Any, batch: Any) -> torch.Tensor:
        if len(batch["labels"]) > 4:
            raise torch.OutOfMemoryError("no memory")
        return objective.loss(outputs, batch)[0]

    given = TrainingParams.model_validate({"max_steps": 2, "global_batch_size": 16, "learning_rate": 1e-3})
    job = jobs.make_job(tmp_path, given, execution={"per_device_train_batch_size": "auto"})
    train(job, tiny.model("bert", AutoModel), objective, features, [], given, loss_fn=scarce)
    incidents = [json.loads(line) for line in (tmp_path / "records/incidents.jsonl").read_text().splitlines()]
    assert [incident["micro"] for incident in incidents] == [8, 4]
    larger = chosen(group=8)
    with pytest.raises(StageError, match="out of memory with 8 examples at once"):
        job = jobs.make_job(tmp_path / "b", given, execution={"per_device_train_batch_size": "auto"})
        train(job, tiny.model("bert", AutoModel), larger, features, [], given, loss_fn=scarce)
    with pytest.raises(StageError, match="micro-batches of 4 would tear apart groups of 8"):
        job = jobs.make_job(tmp_path / "c", given, execution={"per_device_train_batch_size": 4})
        train(job, tiny.model("bert", AutoModel), larger, features, [], given)


def test_padding_changes_no_embedding(tiny: ModuleType) -> None:
    objective, features, model = chosen(), sorted(pairs(), key=chosen().length), tiny.model("bert", AutoModel)
    with torch.no_grad():
        alone, together = (
            objective.predictions(
                {"logits": objective.read(model(**model_inputs(batch, model)))["logits"].numpy()}, arrays
            )
            for batch in (objective.collate(features[:1]), objective.collate(features))
            for arrays in [{name: value.numpy() for name, value in batch.items()}]
        )
    for name in ("anchors", "positives"):
        np.testing.assert_allclose(alone[name][0], together[name][0], atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(together[name], axis=1), 1, atol=1e-5)


def test_soft_loss_is_zero_for_the_teacher_itself_and_allows_another_hidden_size() -> None:
    objective, batch = chosen(symmetric=True), chosen().collate(pairs(8))
    shape, random = batch["input_ids"].shape, torch.Generator().manual_seed(0)
    student, teacher = torch.randn(*shape, 6, generator=random), torch.randn(*shape, 10, generator=random)
    assert float(objective.distillation_loss({"logits": teacher}, {"logits": teacher}, batch, 2.0)) == pytest.approx(
        0, abs=1e-4
    )
    given = list(zip(objective.similarities(student, batch), objective.similarities(teacher, batch), strict=True))
    expected = 0.0
    for s, t in given:
        for a, b in ((s, t), (s.T, t.T)):
            p = (b / 2).softmax(1)
            expected += 4 * float((p * (p.log() - (a / 2).log_softmax(1))).sum()) / 2
    assert float(objective.distillation_loss({"logits": student}, {"logits": teacher}, batch, 2.0)) == pytest.approx(
        expected, rel=1e-4
    )


# --- finding ----------------------------------------------------------------------------------------------------------


def test_ranks_by_hand_and_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    items = np.eye(4, dtype=np.float32)
    queries = np.array([[3, 2, 1, 0], [3, 2, 1, 0], [1, 1, 1, 1], [0, 0, 2, 1]], np.float32)
    # Third: all four are alike, so that drawing lots gives 2.5 on average.
    assert ranks_of_own(queries, items).tolist() == [1, 2, 2.5, 2]
    monkeypatch.setattr("tasks.metrics.retrieval.BLOCK", 3)
    assert ranks_of_own(queries, items).tolist() == [1, 2, 2.5, 2]
    found = retrieval_metrics(np.array([1, 2, 2.5, 20]), np.array([[1.0, 1, 1, 1], [2, 0, 0, 1]]))
    assert found["mrr"] == pytest.approx([(1 + 0.5 + 0.4 + 0.05) / 4, (2 + 0.05) / 3])
    assert found["recall@1"] == pytest.approx([1 / 4, 2 / 3])
    assert found["recall@10"] == pytest.approx([3 / 4, 2 / 3])


def test_embeddings_that_are_all_alike_find_nothing() -> None:
    made = {name: np.ones((50, 4), np.float32) / 2 for name in ("anchors", "positives")}
    found = chosen().metrics(made, np.ones((1, 50)))
    assert found["mrr"][0] < 0.05 and found["recall@10"][0] == 0


def test_similarities_are_judged_by_the_scores_as_scipy_does() -> None:
    random = np.random.default_rng(0)
    anchors, positives = (random.normal(size=(30, 4)).astype(np.float32) for _ in range(2))
    anchors, positives = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (anchors, positives))
    scores = random.integers(0, 6, 30).astype(np.float32)
    weights = np.random.default_rng(1).multinomial(30, np.ones(30) / 30, size=3).astype(float)
    made = {"anchors": anchors, "positives": positives, "scores": scores}
    found = chosen(score="score").metrics(made, weights)
    for row, w in enumerate(weights.astype(int)):
        cosine = (anchors * positives).sum(1)
        expected = spearmanr(np.repeat(scores, w), np.repeat(cosine, w))[0]
        assert found["spearman"][row] == pytest.approx(expected, abs=1e-9)
    assert "spearman" not in chosen().metrics({"anchors": anchors, "positives": positives}, weights)


def test_the_baseline_is_scikit_learns_tfidf() -> None:
    features = pairs(30)
    train_part, heldout = features[:20], features[20:]
    words = [
        [" ".join(map(str, f[key])) for f in part]
        for part in (train_part, heldout)
        for key in ("input_ids", "positive")
    ]
    # Every token has a place in the vocabulary, and its weight from the training split.
    vocabulary = sorted({word for part in words for text in part for word in text.split()})
    vectorizer = TfidfVectorizer(token_pattern=r"\d+", vocabulary=vocabulary).fit(words[0] + words[1])
    table = (vectorizer.transform(words[2]) @ vectorizer.transform(words[3]).T).toarray()
    own = np.diag(table)[:, None]
    ranks = 1 + (table > own + 1e-6).sum(1) + 0.5 * ((abs(table - own) < 1e-6).sum(1) - 1)
    assert chosen().baselines(train_part, heldout) == {"tfidf": pytest.approx((1 / ranks).mean())}


# --- the whole way ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thesaurus(whole_way: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two words and their two translations: no token is shared, so counting finds nothing, and learning all."""
    random = np.random.default_rng(0)
    words, others = (
        whole_way.WORDS,
        ("rot", "grau", "blau", "obst", "birne", "zwetsche", "hund", "katze", "kuh", "lauf", "sitz", "iss"),
    )
    drawn = [tuple(int(i) for i in random.choice(12, 2, replace=False)) for _ in range(220)]
    drawn = list(dict.fromkeys(drawn))
    columns = {
        "text": [f"{words[a]} {words[b]}" for a, b in drawn],
        "title": [f"{others[a]} {others[b]}" for a, b in drawn],
        "score": pa.array([float((a * b) % 5) for a, b in drawn], pa.float32()),
    }
    folder: Path = whole_way.dataset(tmp_path_factory.mktemp("thesaurus") / "data", columns)
    return folder


def test_it_goes_the_whole_way(
    jobs: ModuleType, tiny: ModuleType, whole_way: ModuleType, tiny_inputs: Path, thesaurus: Path, tmp_path: Path
) -> None:
    model = tiny.model("bert", AutoModel, vocabulary=320)
    base = whole_way.base(tmp_path / "base", tiny_inputs / "tokenizer", model, 24)
    found = whole_way.go(
        jobs,
        tmp_path,
        {"name": "sentence_embedding", "positive": "title", "score": "score", "group": 8},
        base,
        thesaurus,
        finetune={"epochs": 15, "learning_rate": 5e-3},
        distill={"epochs": 8, "learning_rate": 5e-3},
        require=[{"metric": "mrr", "max_drop": 1e-3, "confidence": 0.95}, {"metric": "recall@10", "min": 0.5}],
    )
    scores = found["scores"]
    assert scores["primary_metric"] == "mrr" and scores["labels"] is None and found["verdict"]["passed"]
    values = {name: model["metrics"]["mrr"]["value"] for name, model in scores["models"].items()}
    assert values["teacher"] > 0.5 > scores["baselines"]["tfidf"] and values["student"] > scores["baselines"]["tfidf"]
    assert values["onnx"] == pytest.approx(values["student"], abs=1e-3)
    assert values["int8"] == pytest.approx(values["student"], abs=0.25)
    assert "spearman" in scores["models"]["teacher"]["metrics"] and "confusion" not in scores["models"]["teacher"]
    samples = json.loads((tmp_path / "teacher/records/samples.json").read_text())
    rows = {row["text"]: row["title"] for row in pq.read_table(thesaurus / "validation/0.parquet").to_pylist()}
    assert len(samples) == 8 and sum(sample["right"] == "yes" for sample in samples) > 2
    for sample in samples:
        assert (rows[sample["text"]] == sample["nearest"]) == (sample["right"] == "yes")


def test_pruning_works_with_it(
    jobs: ModuleType, tiny: ModuleType, whole_way: ModuleType, tiny_inputs: Path, thesaurus: Path, tmp_path: Path
) -> None:
    from tasks.models.card import ModelCard, write_card
    from tasks.stages import prune

    base = whole_way.base(tmp_path / "m", tiny_inputs / "tokenizer", tiny.model("bert", AutoModel, vocabulary=320), 24)
    write_card(base, ModelCard(chosen().model_dump(), 24))
    heal = {"max_steps": 2, "global_batch_size": 8}
    params = prune.Params.model_validate({"model": "m", "data": "d", "keep": 0.5, "samples": 32, "heal": heal})
    inputs = {"model": jobs.artifact(base, "model"), "data": jobs.artifact(thesaurus, "dataset")}
    metrics = prune.run(jobs.make_job(tmp_path / "job", params, inputs))
    assert metrics["parameters_ratio"] < 1 and 0 < metrics["validation_mrr"] <= 1


@pytest.mark.parametrize(
    ("options", "columns", "says"),
    [
        ({}, {}, "no column 'title'"),
        ({}, {"title": ["a", None] * 5}, "'row005' of split 'validation' has no text in column 'title'"),
        ({}, {"title": ["a", " "] * 5}, "has no text in column 'title'"),
        ({}, {"title": ["a"] * 10, "text": [""] * 10}, "has no text in column 'text'"),
        ({"score": "score"}, {"title": ["a"] * 10}, "no column 'score'"),
        ({"score": "score"}, {"title": ["a"] * 10, "score": [1.0, None] * 5}, "has no value in column 'score'"),
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
    data = whole_way.dataset(tmp_path / "d", {"text": ["one"] * 10, **columns})
    with pytest.raises(StageError, match="data: ") as caught:
        chosen(**options).bound(Tokenizer(load_tokenizer(tiny_inputs / "tokenizer"), 16)).examples(
            jobs.artifact(data, "dataset", stage="data"), "validation"
        )
    assert says in str(caught.value) and caught.value.hint
