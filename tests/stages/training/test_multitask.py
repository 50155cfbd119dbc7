"""Several tasks on one trunk: against bare torch loops, against single trainings, over ranks and resumes."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from infra.errors import Preempted, StageError
from infra.execution import Execution
from tasks.models.card import read_card
from tasks.models.inputs import model_inputs
from tasks.models.loading import load_model
from tasks.objectives.text.text_classification import TextClassification
from tasks.objectives.text.token_classification import TokenClassification
from tasks.processors.tokenizer import Tokenizer, load_tokenizer
from tasks.stages import finetune, multitask, task_model
from tasks.training.engine.batch import BatchSplit
from tasks.training.loop.features import heldout_examples
from tasks.training.loop.result import TrainResult
from tasks.training.multitask.gradient_conflict import conflict
from tasks.training.multitask.mixture import MixtureSampler, batch_counts, interleaved, shares

WORDS = ("red", "green", "blue", "apple", "pear", "plum", "dog", "cat", "cow", "runs", "sits", "eats")
KINDS = ("colour", "fruit", "animal", "verb")
TOPIC = {"name": "topic", "data": "topics", "objective": {"name": "text_classification", "pooling": "model"}}
TAGS = {"name": "tags", "data": "words", "objective": {"name": "token_classification", "scheme": "none"}}
STEPS = 6


def write_inputs(tiny: ModuleType, made: Path) -> Path:
    """`base`, an encoder; `topics`, texts with a label; `words`, rows of one to nine tagged words; `moods`: others."""
    tokenizer = tiny.word_tokenizer(WORDS)
    tiny.write_model(made / "base", tiny.model("bert", AutoModel, vocabulary=len(tokenizer)), tokenizer, 32)

    def text(i: int) -> list[str]:
        return [WORDS[(i * 5 + j * j) % 12] for j in range(1 + i % 9)]

    def label(i: int) -> str:
        return KINDS[WORDS.index(text(i)[0]) // 3]

    def split(name: str, rows: list[dict[str, Any]], **described: Any) -> None:
        parts = {"train": rows[12:], "validation": rows[:12]}
        tiny.write_rows(made / name, parts, **described)

    split("topics", [{"text": " ".join(text(i)), "label": label(i)} for i in range(52)], labels=list(KINDS))
    split("words", [{"words": text(i), "tags": [KINDS[WORDS.index(w) // 3] for w in text(i)]} for i in range(36)])
    moods = [{"text": " ".join(text(i)), "label": "long" if len(text(i)) > 4 else "short"} for i in range(32)]
    split("moods", moods, labels=["long", "short"])
    return made


@pytest.fixture(scope="module")
def folder(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tiny, tmp_path_factory.mktemp("multitask"))


def params(*tasks: dict[str, Any], **given: Any) -> multitask.Params:
    plain = {"schedule": {"name": "constant", "warmup_ratio": 0.0}, "learning_rate": 1e-3, "seed": 3, "dropout": 0.0}
    budget = {"max_steps": STEPS, "global_batch_size": 8}
    chosen = {"model": "base", "tasks": list(tasks or (TOPIC, TAGS))}
    return multitask.Params.model_validate({**chosen, **plain, **budget, **given})


def trained(jobs: ModuleType, folder: Path, place: Path, given: multitask.Params, **job: Any) -> Any:
    inputs = {
        "model": jobs.artifact(folder / "base", "model"),
        "tasks": [jobs.artifact(folder / task.data, "dataset", stage=task.data) for task in given.tasks],
    }
    made = jobs.make_job(place, given, inputs, **job)
    made.metrics = multitask.STAGE.run(made)
    return made


def weights(job: Any) -> dict[str, torch.Tensor]:
    return load_file(job.output / "model.safetensors")


def lines(records: Path, name: str = "train") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (records / f"{name}.jsonl").read_text().splitlines()]


def assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float = 2e-5) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


# --- which examples meet ----------------------------------------------------------------------------------------------


def test_shares_follow_sizes_and_temperature() -> None:
    assert shares([900, 100], 1) == pytest.approx([0.9, 0.1])
    assert shares([900, 100], 2) == pytest.approx([0.75, 0.25])  # 30 : 10
    assert shares([900, 100], 1e6) == pytest.approx([0.5, 0.5], abs=1e-5)
    assert batch_counts([900, 100], 1, 8) == [7, 1] and batch_counts([900, 100], 2, 8) == [6, 2]
    assert batch_counts([10**6, 1, 1], 1, 4) == [2, 1, 1], "nobody is left out"
    with pytest.raises(ValueError, match="cannot hold an example of each of 3 tasks"):
        batch_counts([5, 5, 5], 1, 2)


def test_every_stretch_of_a_batch_is_mixed() -> None:
    assert interleaved([4, 2]) == [0, 1, 0, 0, 1, 0]
    pattern = interleaved([24, 8])
    assert all(pattern[i : i + 8].count(1) == 2 for i in range(0, 32, 8))


def test_each_step_holds_each_task_and_each_epoch_of_a_task_its_examples_once() -> None:
    sizes, counts = [10, 6], [5, 3]
    sampler = MixtureSampler.of(sizes, counts, 7, BatchSplit(8, 1, 8))
    steps = [sampler.global_batch(step) for step in range(4)]
    for step in steps:
        assert [sum(i < 10 for i in step), sum(i >= 10 for i in step)] == counts
    assert sorted(i for step in steps[:2] for i in step if i < 10) == list(range(10))
    assert sorted(i for step in steps[2:] for i in step if i >= 10) == list(range(10, 16))
    assert steps[0] != steps[2], "the next epoch has another order"
    assert sampler.seen(1) == sorted(steps[0]) and sampler.seen(2) == list(range(16))
    by_two = MixtureSampler.of(sizes, counts, 7, BatchSplit(8, 2, 2))
    halves = [i for rank in range(2) for _, part in by_two.micro_batches(3, rank) for i in part]
    assert halves == steps[3], "ranks and micro-batches change nothing"


# --- the training -----------------------------------------------------------------------------------------------------


def reference(folder: Path, given: multitask.Params, jobs: ModuleType) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Trunk weights and losses of a bare torch loop, which joins the heads to one backbone by hand."""
    tokenizer = load_tokenizer(folder / "base")
    models, features, objectives = [], [], []
    for task in given.tasks:
        data = jobs.artifact(folder / task.data, "dataset")
        head = task.objective.head(data)
        objectives.append(task.objective.bound(labels=list(head["label2id"])))
        features.append(objectives[-1].bound(Tokenizer(tokenizer, 32)).examples(data, "train"))
        torch.manual_seed(3)
        models.append(load_model(folder / "base", task.objective.auto_class, hidden_dropout_prob=0.0,
                                 attention_probs_dropout_prob=0.0, classifier_dropout=0.0, **head))  # fmt: skip
    for other in models[1:]:
        other.bert.embeddings, other.bert.encoder = models[0].bert.embeddings, models[0].bert.encoder
        if other.bert.pooler is not None and models[0].bert.pooler is not None:
            other.bert.pooler = models[0].bert.pooler
    unique = list({id(p): p for model in models for p in model.parameters()}.values())
    groups = [
        {"params": [p for p in unique if p.ndim >= 2], "weight_decay": 0.01},
        {"params": [p for p in unique if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=given.learning_rate)
    sizes = [len(part) for part in features]
    sampler = MixtureSampler.of(sizes, batch_counts(sizes, given.temperature, 8), 3, BatchSplit(8, 1, 8))
    losses = []
    for step in range(STEPS):
        chosen = sampler.global_batch(step)
        total = torch.zeros(())
        for k, (model, objective) in enumerate(zip(models, objectives, strict=True)):
            model.train()
            rows = [features[k][i - sum(sizes[:k])] for i in chosen if 0 <= i - sum(sizes[:k]) < sizes[k]]
            batch = objective.bound(config=model.config).collate(rows)
            loss, units = objective.loss({"logits": model(**model_inputs(batch, model)).logits}, batch)
            total = total + given.tasks[k].weight * loss / units
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(unique, 1.0)
        optimizer.step()
        losses.append(float(total.detach()))
    return {f"trunk.{name}": value.detach() for name, value in models[0].bert.named_parameters()}, losses


@pytest.mark.parametrize("micro", [8, 2])
@pytest.mark.parametrize(
    "tasks",
    [
        ({**TOPIC, "weight": 0.5}, {**TOPIC, "name": "mood", "data": "moods"}),
        (TOPIC, {**TAGS, "weight": 2.0}),
    ],
    ids=["two classifications", "classification and tags"],
)
def test_equals_a_bare_torch_loop(
    jobs: ModuleType, folder: Path, tmp_path: Path, tasks: tuple[dict[str, Any], ...], micro: int
) -> None:
    """Tagged rows differ in words: a mean of micro-batch means would differ. With two at once, some lack a task."""
    given = params(*tasks, temperature=2.0)
    job = trained(jobs, folder, tmp_path, given, execution={"per_device_train_batch_size": micro})
    trunk, losses = reference(folder, given, jobs)
    assert [line["loss"] for line in lines(job.records)] == pytest.approx(losses, abs=2e-5)
    for line in lines(job.records):
        own = sum(task.weight * line[f"{task.name}/loss"] for task in given.tasks)
        assert own == pytest.approx(line["loss"], abs=1e-6)
    found = weights(job)
    assert_near({name: found[name] for name in trunk}, trunk, atol=2e-4)
    mixture = json.loads((job.records / "mixture.json").read_text())
    assert sum(one["in_batch"] for one in mixture.values()) == 8


@pytest.mark.parametrize("task", [TOPIC, TAGS], ids=["topic", "tags"])
def test_one_task_alone_is_its_fine_tuning(
    jobs: ModuleType, folder: Path, tmp_path: Path, task: dict[str, Any]
) -> None:
    given = params(task, dropout=None, eval_every=3)
    job = trained(jobs, folder, tmp_path / "shared", given)
    settings = given.model_dump(include={"schedule", "learning_rate", "seed", "max_steps", "global_batch_size"})
    single = finetune.Params.model_validate(
        {**settings, "model": "base", "data": "data", "objective": task["objective"], "eval_every": 3}
    )
    inputs = {
        "model": jobs.artifact(folder / "base", "model"),
        "data": jobs.artifact(folder / task["data"], "dataset"),
    }
    alone = jobs.make_job(tmp_path / "alone", single, inputs)
    metrics = finetune.STAGE.run(alone)
    assert [x["loss"] for x in lines(job.records)] == pytest.approx([x["loss"] for x in lines(alone.records)], abs=1e-6)
    assert job.metrics[f"validation_{task['name']}/loss"] == pytest.approx(metrics["validation_loss"], abs=1e-6)
    out = plain_model(jobs, job, tmp_path / "plain", task["name"]).output
    assert_near(load_file(out / "model.safetensors"), load_file(alone.output / "model.safetensors"), atol=1e-6)
    for file in ("forgeline.json", "tokenizer.json"):
        assert (out / file).read_bytes() == (alone.output / file).read_bytes()
    configs = [json.loads((place / "config.json").read_text()) for place in (out, alone.output)]
    assert configs[0] == configs[1]


def plain_model(jobs: ModuleType, job: Any, place: Path, task: str) -> Any:
    shared = jobs.artifact(job.output, "multitask_model", stage="shared")
    made = jobs.make_job(place, task_model.Params(model="shared", task=task), {"model": shared})
    made.metrics = task_model.STAGE.run(made)
    return made


def test_a_task_model_is_a_plain_model_that_says_what_the_shared_one_said(
    jobs: ModuleType, folder: Path, tmp_path: Path
) -> None:
    job = trained(jobs, folder, tmp_path / "shared", params())
    classes: Any = {"topic": AutoModelForSequenceClassification, "tags": AutoModelForTokenClassification}
    objectives: Any = {
        "topic": TextClassification(pooling="model"),
        "tags": TokenClassification(scheme="none").bound(labels=sorted(KINDS)),
    }
    for name, data in (("topic", "topics"), ("tags", "words")):
        out = plain_model(jobs, job, tmp_path / name, name).output
        model = classes[name].from_pretrained(out)
        heldout = heldout_examples(
            objectives[name].bound(Tokenizer(load_tokenizer(out), 32)),
            jobs.artifact(folder / data, "dataset"),
            "validation",
        )
        values = TrainResult.untrained(model, objectives[name], heldout).validation
        assert values["loss"] == pytest.approx(job.metrics[f"validation_{name}/loss"], abs=1e-5)
    with pytest.raises(StageError, match="no task 'topics'") as caught:
        plain_model(jobs, job, tmp_path / "none", "topics")
    assert "Did you mean topic?" in str(caught.value)


def test_a_resumed_training_ends_in_the_same_bits(jobs: ModuleType, folder: Path, tmp_path: Path) -> None:
    given = params(weighting="uncertainty", uncertainty_rate=10.0, dropout=0.1, eval_every=2, keep="best")
    straight = trained(jobs, folder, tmp_path / "straight", given)
    questions = iter([False] * 3 + [True] * 10)
    store = tmp_path / "store"
    with pytest.raises(Preempted):
        trained(jobs, folder, tmp_path / "stopped", given, stop_requested=lambda: next(questions), store=store)
    resumed = trained(jobs, folder, tmp_path / "resumed", given, store=store)
    for name, value in weights(straight).items():
        assert torch.equal(weights(resumed)[name], value), name
    assert (
        lines(resumed.records, "validation")[-1]["topic/f1_macro"]
        == lines(straight.records, "validation")[-1]["topic/f1_macro"]
    )


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_zero_stages_train_the_same(jobs: ModuleType, folder: Path, tmp_path: Path, zero_stage: int) -> None:
    plain = trained(jobs, folder, tmp_path / "plain", params(weighting="uncertainty"))
    execution = {"zero_stage": zero_stage, "offload_optimizer": True, "per_device_train_batch_size": 2}
    job = trained(jobs, folder, tmp_path / "zero", params(weighting="uncertainty"), execution=execution)
    assert_near(weights(job), weights(plain), atol=2e-4)


def test_a_weight_of_zero_leaves_a_head_as_it_began(jobs: ModuleType, folder: Path, tmp_path: Path) -> None:
    two = trained(jobs, folder, tmp_path / "two", params(TOPIC, {**TAGS, "weight": 0.0}))
    torch.manual_seed(3)
    began = load_model(folder / "base", "AutoModelForTokenClassification", num_labels=4)
    assert torch.equal(weights(two)["heads.tags.classifier.weight"], began.classifier.weight)


def test_methods_of_fine_tuning_act_on_the_trunk_and_every_head(jobs: ModuleType, folder: Path, tmp_path: Path) -> None:
    """Beside a training with neither freezing nor decay: frozen layers stay, a lower layer moves less, heads as much."""
    began = load_model(folder / "base", "AutoModel").state_dict()
    steps = {"max_steps": 1}  # the first step of Adam is as long as the rate

    def moved(given: multitask.Params, place: str, **job: Any) -> dict[str, float]:
        found = weights(trained(jobs, folder, tmp_path / place, given, **job))
        return {
            name: float((value - began[name.removeprefix("trunk.")]).abs().max())
            for name, value in found.items()
            if name.startswith("trunk.encoder") and name.endswith("query.weight")
        }

    plain = moved(params(**steps), "plain")
    assert min(plain.values()) > 0 and len(plain) == 2
    lower, upper = plain
    frozen = moved(params(**steps, freeze={"all_but_last": 1}), "frozen")
    assert frozen[lower] == 0 and frozen[upper] == pytest.approx(plain[upper], rel=1e-3)
    decayed = moved(params(**steps, layer_decay=0.5), "decayed")
    assert decayed[lower] / decayed[upper] == pytest.approx(0.5 * plain[lower] / plain[upper], rel=1e-2)
    averaged = moved(params(**steps, ema=0.75), "averaged")
    assert averaged[upper] == pytest.approx(0.25 * plain[upper], rel=1e-2)


def test_compiled_it_trains_the_same(jobs: ModuleType, folder: Path, tmp_path: Path) -> None:
    plain = trained(jobs, folder, tmp_path / "plain", params())
    job = trained(jobs, folder, tmp_path / "compiled", params(), execution={"compile": "aot_eager"})
    assert_near(weights(job), weights(plain), atol=2e-4)


def test_learned_weights_follow_the_gradient(jobs: ModuleType, folder: Path, tmp_path: Path) -> None:
    """d/ds (exp(-s) L + s/2) at s = 0 is 1/2 - L: while a loss is above one half, its log-variance rises."""
    rate = 5.0
    given = params(weighting="uncertainty", uncertainty_rate=rate, max_grad_norm=0.0)
    job = trained(jobs, folder, tmp_path, given, execution={"per_device_train_batch_size": 4})
    found = lines(job.records)
    assert [found[0][f"{task}/log_variance"] for task in ("topic", "tags")] == [0.0, 0.0]
    assert found[0]["loss"] == pytest.approx(found[0]["topic/loss"] + found[0]["tags/loss"], abs=1e-6)
    for task in ("topic", "tags"):
        assert found[0][f"{task}/loss"] > 0.5
        # Adam's first step is the sign of the gradient times the rate.
        assert found[1][f"{task}/log_variance"] == pytest.approx(rate * given.learning_rate, rel=1e-4)
    from tasks.training.multitask.objective import Multitask

    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    part = {"labels": torch.tensor([0, 0]), "attention_mask": torch.ones(2, 3)}
    objective = Multitask(
        tasks={"a": TextClassification(pooling="model")}, weights=None, fillers={"a": None}, labels={"a": None}
    )
    variances = torch.tensor([0.3], requires_grad=True)
    batch = {f"a/{name}": value for name, value in part.items()}
    batch |= {"examples": torch.tensor(2.0), "present": torch.ones(1), "step_units": torch.tensor([2.0, 2.0])}
    total, units = objective.loss({"a/logits": logits, "log_variances": variances}, batch)
    (total / units).backward()
    mean = torch.nn.functional.cross_entropy(logits, part["labels"])
    assert variances.grad == pytest.approx(0.5 - float(torch.exp(torch.tensor(-0.3)) * mean), abs=1e-6)


def test_the_watched_metric_of_a_task_chooses_the_weights(jobs: ModuleType, folder: Path, tmp_path: Path) -> None:
    given = params(eval_every=1, keep="best", watch="tags/accuracy", learning_rate=5e-3)
    job = trained(jobs, folder, tmp_path, given)
    best = max(line["tags/accuracy"] for line in lines(job.records, "validation"))
    assert job.metrics["validation_tags/accuracy"] == best


# --- conflict ---------------------------------------------------------------------------------------------------------


def test_opposed_gradients_have_a_cosine_of_minus_one() -> None:
    one = torch.tensor([3.0, 4.0])
    found = conflict({"a": one, "b": -2 * one, "c": torch.tensor([4.0, -3.0])})
    assert found["norms"] == pytest.approx([5.0, 10.0, 5.0])
    assert found["cosine"][0] == pytest.approx([1.0, -1.0, 0.0])
    assert found["conflicting"] == pytest.approx(1 / 3)


def test_tasks_of_opposite_labels_pull_apart_and_the_same_task_twice_together(
    jobs: ModuleType, folder: Path, tmp_path: Path
) -> None:
    job = trained(jobs, folder, tmp_path, params(TOPIC, {**TOPIC, "name": "again"}, TAGS))
    found = json.loads((job.records / "conflict.json").read_text())
    assert found["before"]["tasks"] == ["topic", "again", "tags"]
    assert found["before"]["cosine"][0][1] == pytest.approx(1.0, abs=1e-5), "one head, one data set: one gradient"
    assert -1 < found["after"]["cosine"][0][2] < 1 and job.metrics["conflicting"] == found["after"]["conflicting"]


# --- what cannot be asked for -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tasks": [TOPIC, TOPIC]}, "two tasks are called 'topic'"),
        ({"tasks": [{**TOPIC, "objective": {"name": "sentence_embedding", "positive": "text"}}]}, "one loss for"),
        ({"weighting": "uncertainty", "tasks": [{**TOPIC, "weight": 2.0}]}, "leave out `weight`"),
        ({"tasks": [{**TOPIC, "weight": 0.0}]}, "nothing is left to learn"),
        ({"uncertainty_rate": 2.0}, "is for `weighting: uncertainty`"),
        ({"r_drop": 1.0}, "`r_drop` is not offered"),
        ({"watch": "topics/accuracy"}, "did you mean topic"),
        ({"watch": "accuracy"}, "`topic/accuracy`"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        params(**given)


def test_a_batch_must_hold_every_task() -> None:
    (fault,) = multitask.check(params(global_batch_size=1), Execution())
    assert fault.path == ("global_batch_size",) and "cannot hold one of each of 2 tasks" in fault.message


@pytest.mark.parametrize(
    ("type", "objective"),
    [("bert", "masked_lm"), ("t5", {"name": "seq2seq", "target": "label"}), ("gpt2", "causal_lm")],
    ids=lambda value: value if isinstance(value, str) else value["name"],
)
def test_a_head_that_says_words_goes_with_one_that_names_classes(
    jobs: ModuleType, tiny: ModuleType, folder: Path, tmp_path: Path, type: str, objective: Any
) -> None:
    """Output words that are tied to the trunk's stay so, and a decoder is part of the trunk of those that have one."""
    special = {"mask_token": "[MASK]", "bos_token": "[CLS]", "eos_token": "[SEP]"}
    tokenizer = tiny.word_tokenizer(WORDS)
    tokenizer.add_special_tokens(special)
    base = {"bert": AutoModel, "t5": AutoModelForSeq2SeqLM, "gpt2": AutoModelForCausalLM}[type]
    tiny.write_model(tmp_path / "base", tiny.model(type, base, vocabulary=len(tokenizer)), tokenizer, 32)
    words = {"name": "words", "data": "topics", "objective": objective}
    topic = {"name": "topic", "data": "topics", "objective": "text_classification"}
    given = params(words, topic, dropout=None)
    inputs = {
        "model": jobs.artifact(tmp_path / "base", "model"),
        "tasks": [jobs.artifact(folder / "topics", "dataset", stage="topics")] * 2,
    }
    job = jobs.make_job(tmp_path / "shared", given, inputs)
    metrics = multitask.STAGE.run(job)
    for task in given.tasks:
        out = plain_model(jobs, job, tmp_path / task.name, task.name).output
        chosen = read_card(out).objective
        model = getattr(transformers, chosen.auto_class).from_pretrained(out)
        heldout = heldout_examples(chosen.bound(Tokenizer(load_tokenizer(out), 32)), inputs["tasks"][0], "validation")
        values = TrainResult.untrained(model, chosen, heldout).validation
        assert values["loss"] == pytest.approx(metrics[f"validation_{task.name}/loss"], abs=1e-5)
        if task.name == "words":
            assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
