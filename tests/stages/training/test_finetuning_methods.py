"""What learns in a fine-tuning and by which optimizer: against bare torch loops, and what cannot be asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from infra.errors import Preempted, StageError
from infra.execution import Execution
from tasks.models.card import ModelCard, write_card
from tasks.models.structure.parts import depths
from tasks.objectives.text.causal_lm import CausalLM
from tasks.processors.tokenizer import Tokenizer, load_tokenizer
from tasks.stages import finetune
from tasks.training.engine.batch import BatchSplit
from tasks.training.engine.deepspeed_config import training_faults
from tasks.training.engine.parameter_groups import Tuning, group_rate, parameter_groups
from tasks.training.loop.result import TrainResult
from tasks.training.loop.sampler import Sampler
from tasks.training.loop.train import train
from tasks.training.settings import OptimizerParams, TrainingParams

STEPS = 8


def params(**given: Any) -> TrainingParams:
    plain = {"schedule": {"name": "constant", "warmup_ratio": 0.0}, "max_grad_norm": 0.0}
    return TrainingParams.model_validate(
        {"max_steps": STEPS, "global_batch_size": 8, "learning_rate": 1e-3, "seed": 3, **plain, **given}
    )


def trained(jobs: ModuleType, tiny: ModuleType, folder: Path, given: TrainingParams, **job: Any) -> TrainResult:
    features = tiny.lm_features(40)
    return train(jobs.make_job(folder, given, **job), tiny.model(), CausalLM(), features, [], given)


def reference(
    tiny: ModuleType, make: Callable[[torch.nn.Module], list[torch.optim.Optimizer]]
) -> dict[str, torch.Tensor]:
    """Weights after a bare loop over whole global batches."""
    model, features, objective = tiny.model(), tiny.lm_features(40), CausalLM()
    optimizers = make(model)
    model.train()
    for step in range(STEPS):
        rows = [features[i] for i in Sampler(40, 3, BatchSplit(8, 1, 8)).global_batch(step)]
        batch = objective.collate(rows)
        total, units = objective.loss({"logits": model(batch["input_ids"], batch["attention_mask"]).logits}, batch)
        (total / units).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return dict(model.named_parameters())


def assert_same(result: TrainResult, expected: dict[str, torch.Tensor], atol: float = 2e-6) -> None:
    for name, value in result.model.named_parameters():
        torch.testing.assert_close(value, expected[name], atol=atol, rtol=0, msg=name)


def test_layers_below_learn_more_slowly(jobs: ModuleType, tiny: ModuleType, tmp_path: Path) -> None:
    rates = {
        "model.embed_tokens": 0.125,
        "model.layers.0": 0.25,
        "model.layers.1": 0.5,
        "model.norm": 1.0,
        "lm_head": 1.0,
    }

    def make(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
        groups = []
        for name, parameter in model.named_parameters():
            rate = next(value for prefix, value in rates.items() if name.startswith(prefix))
            decay = 0.01 if parameter.ndim > 1 else 0.0
            groups.append({"params": [parameter], "lr": 1e-3 * rate, "weight_decay": decay})
        return [torch.optim.AdamW(groups)]

    features, given = tiny.lm_features(40), params()
    job = jobs.make_job(tmp_path, given)
    result = train(job, tiny.model(), CausalLM(), features, [], given, tuning=Tuning(layer_decay=0.5))
    assert_same(result, reference(tiny, make))


@pytest.mark.parametrize(("zero_stage", "micro"), [(0, 2), (2, 8), (3, 8)])
def test_lion_is_its_formula(jobs: ModuleType, tiny: ModuleType, tmp_path: Path, zero_stage: int, micro: int) -> None:
    class Plain(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for w in group["params"]:
                    m = self.state[w].setdefault("m", torch.zeros_like(w))
                    u = torch.sign(0.9 * m + 0.1 * w.grad)
                    w -= group["lr"] * (u + group["decay"] * w)
                    m.copy_(0.99 * m + 0.01 * w.grad)

    def make(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
        groups = [{"params": [p], "lr": 1e-3, "decay": 0.1 if p.ndim > 1 else 0.0} for p in model.parameters()]
        return [Plain(groups, {})]

    optimizer = {"name": "lion", "betas": [0.9, 0.99], "weight_decay": 0.1}
    execution = {"zero_stage": zero_stage, "offload_optimizer": zero_stage > 0, "per_device_train_batch_size": micro}
    result = trained(jobs, tiny, tmp_path, params(optimizer=optimizer), execution=execution)
    expected = reference(tiny, make)
    # A sign turns a difference of rounding into one of two steps, where a gradient is nearly zero.
    for name, value in result.model.named_parameters():
        away = (value - expected[name]).abs()
        assert float((away > 1e-6).float().mean()) < 0.02, name


def test_muon_is_torch_s_for_the_layers_and_adamw_for_the_rest(
    jobs: ModuleType, tiny: ModuleType, tmp_path: Path
) -> None:
    def make(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
        named = dict(model.named_parameters())
        inner = [p for n, p in named.items() if ".layers." in n and p.ndim == 2]
        outer = [
            {"params": [p], "weight_decay": 0.01 if p.ndim > 1 else 0.0}
            for n, p in named.items()
            if not any(p is q for q in inner)
        ]
        muon = torch.optim.Muon(inner, lr=1e-3, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw")
        return [muon, torch.optim.AdamW(outer, lr=1e-3, betas=(0.95, 0.98))]

    optimizer = {"name": "muon", "betas": [0.95, 0.98]}
    result = trained(jobs, tiny, tmp_path, params(optimizer=optimizer), execution={"per_device_train_batch_size": 4})
    assert_same(result, reference(tiny, make), atol=1e-4)  # its iteration is in bf16


@pytest.mark.parametrize(("name", "zero_stage"), [("lion", 0), ("lion", 2), ("lion", 3), ("muon", 0)])
def test_a_resumed_training_ends_in_the_same_weights(
    jobs: ModuleType, tiny: ModuleType, tmp_path: Path, name: str, zero_stage: int
) -> None:
    execution = {"zero_stage": zero_stage, "offload_optimizer": zero_stage > 0}
    given = params(optimizer={"name": name})
    whole = trained(jobs, tiny, tmp_path / "whole", given, execution=execution)
    questions = iter(range(100))
    with pytest.raises(Preempted):
        trained(
            jobs,
            tiny,
            tmp_path / "a",
            given,
            execution=execution,
            store=tmp_path / "s",
            stop_requested=lambda: next(questions) >= 5,
        )
    again = trained(jobs, tiny, tmp_path / "b", given, execution=execution, store=tmp_path / "s")
    first = json.loads((tmp_path / "b/records/train.jsonl").read_text().splitlines()[0])
    assert first["step"] == 1, "the record goes on from the checkpoint's"
    for key, value in whole.model.named_parameters():
        assert torch.equal(value, dict(again.model.named_parameters())[key]), key


def test_muon_knows_no_partitions() -> None:
    given = params(optimizer={"name": "muon"})
    assert not training_faults(given, Execution(zero_stage=2))
    faults = training_faults(given, Execution(zero_stage=2, processes=2))
    assert [fault.path for fault in faults] == [("optimizer", "name")] and "ZeRO 0" in faults[0].message


def test_two_passes_that_agree_are_one_pass_and_others_are_pulled_together(
    jobs: ModuleType, tiny: ModuleType, tmp_path: Path
) -> None:
    """Without dropout R-Drop is no change; with it, the loss grows by what the passes are apart."""
    plain = trained(jobs, tiny, tmp_path / "plain", params())
    same = trained(jobs, tiny, tmp_path / "same", params(r_drop=4.0))
    assert_same(same, dict(plain.model.named_parameters()), atol=1e-6)
    losses = []
    for weight in (1e-9, 4.0):
        given = params(r_drop=weight, max_steps=1)
        model = tiny.model("bert", AutoModelForCausalLM, hidden_dropout_prob=0.3, is_decoder=True)
        job = jobs.make_job(tmp_path / f"r{weight}", given)
        train(job, model, CausalLM(), tiny.lm_features(40), [], given)
        losses.append(json.loads((job.records / "train.jsonl").read_text().splitlines()[0])["loss"])
    assert losses[1] > losses[0] + 1e-3


# --- what is frozen ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tiny: ModuleType, tiny_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny.model("bert", AutoModelForTokenClassification, vocabulary=tiny.VOCABULARY, num_labels=5).save_pretrained(
        folder
    )
    for file in (tiny_inputs / "tokenizer").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    write_card(folder, ModelCard(None, 32))
    return folder


def finetuned(
    jobs: ModuleType, tiny_inputs: Path, base: Path, folder: Path, execution: dict[str, Any] | None = None, **given: Any
) -> Any:
    settings = {"objective": "text_classification", "max_steps": 3, "global_batch_size": 8, "new_head": True, **given}
    made = finetune.Params.model_validate({"model": "base", "data": "data", **settings})
    inputs = {"model": jobs.artifact(base, "model"), "data": jobs.artifact(tiny_inputs / "dataset", "dataset")}
    job = jobs.make_job(folder, made, inputs, execution=execution)
    job.metrics = finetune.STAGE.run(job)
    return job


def changed(base: Path, output: Path) -> set[str]:
    before, after = (
        dict(AutoModelForTokenClassification.from_pretrained(folder, ignore_mismatched_sizes=True).named_parameters())
        for folder in (base, output)
    )
    return {name for name in before if name.startswith("bert") and not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("freeze", "learns"),
    [
        ({"all_but_last": 1}, {"bert.encoder.layer.1"}),
        ({"all_but_last": 0}, set()),
        ({"patterns": ["*embeddings*", "bert.encoder.layer.1.*"]}, {"bert.encoder.layer.0"}),
        ({"all_but_last": 0, "thaw_over": 0.5}, {"bert.encoder.layer.0", "bert.encoder.layer.1", "bert.embeddings"}),
    ],
)
def test_only_what_is_not_frozen_learns(
    jobs: ModuleType, tiny_inputs: Path, base: Path, tmp_path: Path, freeze: dict[str, Any], learns: set[str]
) -> None:
    job = finetuned(jobs, tiny_inputs, base, tmp_path, freeze=freeze, max_steps=6)
    moved = changed(base, job.output)
    assert {next((p for p in learns if n.startswith(f"{p}.")), n) for n in moved} == learns


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_frozen_weights_come_out_whole_where_ranks_share_them(
    jobs: ModuleType, tiny_inputs: Path, base: Path, tmp_path: Path, zero_stage: int
) -> None:
    execution = {"zero_stage": zero_stage, "offload_optimizer": True}
    job = finetuned(jobs, tiny_inputs, base, tmp_path, execution=execution, freeze={"all_but_last": 1})
    assert {name.rpartition("layer.")[2][0] for name in changed(base, job.output)} == {"1"}


def test_layers_thaw_from_the_top(tiny: ModuleType) -> None:
    model = tiny.model("bert", AutoModelForTokenClassification, num_labels=2)
    place = depths(model)
    assert {place[n] for n in place if "embeddings" in n} == {0} and place["classifier.weight"] == 3
    names = frozenset(name for name in place if place[name] < 3)
    groups = parameter_groups(model, OptimizerParams(), Tuning(thaw_over=0.6, thawing=names))
    learning = [
        {
            place[name]
            for name, p in model.named_parameters()
            for g in groups
            if any(p is q for q in g["params"]) and group_rate(g, 1.0, progress)
        }
        for progress in (0.0, 0.2, 0.4, 0.6)
    ]
    assert learning == [{3}, {2, 3}, {1, 2, 3}, {0, 1, 2, 3}]


@pytest.mark.parametrize(
    ("freeze", "says"),
    [
        ({"patterns": ["bert.encoder.layers.*"]}, "no parameter is named"),
        ({"patterns": ["*"]}, "nothing is left to learn"),
        ({"all_but_last": 3}, "the model has 2 layers, not 3"),
    ],
)
def test_freezing_that_cannot_be_meant_is_refused(
    jobs: ModuleType, tiny_inputs: Path, base: Path, tmp_path: Path, freeze: dict[str, Any], says: str
) -> None:
    with pytest.raises(StageError, match=says):
        finetuned(jobs, tiny_inputs, base, tmp_path, freeze=freeze)


def test_a_head_of_other_labels_is_only_replaced_on_request(
    jobs: ModuleType, tiny_inputs: Path, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        StageError, match=r"a head for 5 classes without names of their own, and the data have"
    ) as caught:
        finetuned(jobs, tiny_inputs, base, tmp_path, new_head=False)
    assert "new_head: true" in str(caught.value)


def test_weights_of_another_shape_are_refused_by_name(
    jobs: ModuleType, tiny_inputs: Path, base: Path, tmp_path: Path
) -> None:
    for file in base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((base / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(StageError, match=r"bert.encoder.layer.0.intermediate.dense.bias is 64, not 48"):
        finetuned(jobs, tiny_inputs, tmp_path, tmp_path / "job")
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(StageError, match=r"lacks 16 weights of the backbone: bert.encoder.layer.2"):
        finetuned(jobs, tiny_inputs, tmp_path, tmp_path / "job")


def test_dropout_is_set_everywhere(jobs: ModuleType, tiny_inputs: Path, base: Path, tmp_path: Path) -> None:
    job = finetuned(jobs, tiny_inputs, base, tmp_path, dropout=0.25)
    config = json.loads((job.output / "config.json").read_text())
    assert {config[name] for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")} == {
        0.25
    }


# --- low-rank updates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "execution", [{}, {"zero_stage": 2, "offload_optimizer": True}, {"zero_stage": 3, "offload_optimizer": True}]
)
def test_updates_of_low_rank_are_merged_into_a_plain_model(
    jobs: ModuleType, tiny_inputs: Path, base: Path, tmp_path: Path, execution: dict[str, Any]
) -> None:
    given = {"lora": {"r": 2, "targets": ["query", "value"]}, "max_steps": 6, "learning_rate": 1e-2}
    job = finetuned(jobs, tiny_inputs, base, tmp_path, execution=execution, **given)
    before = dict(AutoModelForTokenClassification.from_pretrained(base).named_parameters())
    model = AutoModelForTokenClassification.from_pretrained(job.output)  # stock transformers, without peft
    moved = {
        n: v - before[n] for n, v in model.named_parameters() if n.startswith("bert") and not torch.equal(v, before[n])
    }
    assert {name.split(".")[-2] for name in moved} == {"query", "value"} and len(moved) == 4
    for change in moved.values():
        assert torch.linalg.matrix_rank(change.detach(), atol=1e-5, rtol=0) == 2
    first, last = (json.loads((job.records / "train.jsonl").read_text().splitlines()[i])["loss"] for i in (0, -1))
    assert last < first
    batch = {"input_ids": torch.arange(3, 13)[None]}
    with torch.no_grad():
        assert torch.isfinite(model(**batch).logits).all()


def test_low_rank_validation_is_that_of_the_merged_model(
    jobs: ModuleType, tiny_inputs: Path, base: Path, tmp_path: Path
) -> None:
    from tasks.objectives.text.text_classification import TextClassification
    from tasks.training.loop.features import heldout_examples
    from tasks.training.loop.result import TrainResult

    job = finetuned(jobs, tiny_inputs, base, tmp_path, lora={"r": 4}, max_steps=6, learning_rate=1e-2)
    data = jobs.artifact(tiny_inputs / "dataset", "dataset")
    objective = TextClassification()
    heldout = heldout_examples(objective.bound(Tokenizer(load_tokenizer(job.output), 32)), data, "validation")
    model = AutoModelForTokenClassification.from_pretrained(job.output)
    values = TrainResult.untrained(model, objective, heldout).validation
    assert values["loss"] == pytest.approx(job.metrics["validation_loss"], abs=1e-5)


def test_targets_that_match_nothing_are_refused_with_those_there_are(
    jobs: ModuleType, tiny_inputs: Path, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match="no matrix is named 'q_proj'") as caught:
        finetuned(jobs, tiny_inputs, base, tmp_path, lora={"targets": ["query", "q_proj"]})
    assert "dense, key, query, value" in str(caught.value)


def test_rows_that_were_packed_with_another_tokenizer_are_refused(
    jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path, tmp_path: Path
) -> None:
    """Both have 320 tokens or more, so that nothing else would notice."""
    other = tiny.word_tokenizer([f"word{i}" for i in range(400)])
    model = tiny.write_model(tmp_path / "model", tiny.model(vocabulary=len(other)), other, 64)
    given = {"model": "m", "data": "tokens", "objective": "causal_lm", "max_steps": 1}
    inputs = {"model": jobs.artifact(model, "model"), "data": jobs.artifact(tiny_inputs / "tokens", "tokens")}
    with pytest.raises(StageError, match=r"packed with another tokenizer than the model's: \d+ tokens differ"):
        jobs.run_stage(tmp_path / "finetune", "finetune", given, **inputs)


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_a_model_that_does_not_know_all_tokens_is_refused(
    jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path, tmp_path: Path, kind: str
) -> None:
    tokenizer = load_tokenizer(tiny_inputs / "tokenizer")
    given: dict[str, Any] = {"data": "d", "objective": "causal_lm", "max_steps": 1}
    inputs = {"data": jobs.artifact(tiny_inputs / "tokens", "tokens")}
    if kind == "pretrain":
        small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        given["model"] = {"type": "llama", "vocab_size": 300, **small}
    else:
        given["model"] = "m"
        folder = tiny.write_model(tmp_path / "model", tiny.model(vocabulary=300), tokenizer, 64)
        inputs["model"] = jobs.artifact(folder, "model")
    with pytest.raises(StageError, match="the tokenizer has 320 tokens, the model 300"):
        jobs.run_stage(tmp_path / kind, kind, given, **inputs)


def test_a_missing_pad_token_is_set_and_told(
    jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Hugging Face's sequence head of a decoder refuses batches without one."""
    folder = tmp_path / "base"
    tiny.model(vocabulary=tiny.VOCABULARY, pad_token_id=None).save_pretrained(folder)
    for file in (tiny_inputs / "tokenizer").iterdir():
        text = file.read_text()
        if file.name != "tokenizer.json":
            found = json.loads(text)
            found.pop("pad_token", None)
            text = json.dumps(found)
        (folder / file.name).write_text(text)
    write_card(folder, ModelCard(None, 32))
    objective = {"name": "text_classification", "pooling": "model"}
    job = finetuned(jobs, tiny_inputs, folder, tmp_path / "job", objective=objective, new_head=False)
    end = json.loads((job.output / "config.json").read_text())["pad_token_id"]
    assert f"no padding token; token {end} stands in for it" in caplog.text
    assert job.metrics["validation_loss"] < 10
