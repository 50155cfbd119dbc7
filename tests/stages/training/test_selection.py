"""Which weights are kept and when training ends: against a bare loop, at every ZeRO stage, through a stop and a resume."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from infra.errors import Preempted, StageError
from tasks.objectives.text.causal_lm import CausalLM
from tasks.training.engine.batch import BatchSplit
from tasks.training.loop.result import TrainResult
from tasks.training.loop.sampler import Sampler
from tasks.training.loop.train import train
from tasks.training.settings import TrainingParams

STEPS, DECAY = 12, 0.7
ZERO = [{"zero_stage": stage, "offload_optimizer": stage > 0} for stage in (0, 2, 3)]


def params(**given: Any) -> TrainingParams:
    plain = {"schedule": {"name": "constant", "warmup_ratio": 0.0}, "max_grad_norm": 0.0}
    return TrainingParams.model_validate(
        {"max_steps": STEPS, "global_batch_size": 8, "learning_rate": 5e-3, "seed": 3, **plain, **given}
    )


def trained(jobs: ModuleType, tiny: ModuleType, folder: Path, given: TrainingParams, **job: Any) -> TrainResult:
    features = tiny.lm_features(40)
    return train(jobs.make_job(folder, given, **job), tiny.model(), CausalLM(), features, features[:5], given)


def by_step(tiny: ModuleType) -> list[dict[str, torch.Tensor]]:
    """Weights before the first and after each step of a bare loop."""
    model, features, objective = tiny.model(), tiny.lm_features(40), CausalLM()
    groups = [{"params": [p], "weight_decay": 0.01 if p.ndim > 1 else 0.0} for p in model.parameters()]
    optimizer = torch.optim.AdamW(groups, lr=5e-3)
    found = [{name: p.detach().clone() for name, p in model.named_parameters()}]
    for step in range(STEPS):
        rows = [features[i] for i in Sampler(40, 3, BatchSplit(8, 1, 8)).global_batch(step)]
        batch = objective.collate(rows)
        total, units = objective.loss({"logits": model(batch["input_ids"], batch["attention_mask"]).logits}, batch)
        (total / units).backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append({name: p.detach().clone() for name, p in model.named_parameters()})
    return found


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records/validation.jsonl").read_text().splitlines()]


def close(result: TrainResult, expected: dict[str, torch.Tensor]) -> None:
    for name, value in result.model.named_parameters():
        torch.testing.assert_close(value, expected[name], atol=2e-5, rtol=0, msg=name)


@pytest.mark.parametrize("execution", ZERO)
def test_the_average_is_that_of_the_steps_and_is_what_is_validated(
    jobs: ModuleType, tiny: ModuleType, tmp_path: Path, execution: dict[str, Any]
) -> None:
    result = trained(jobs, tiny, tmp_path, params(ema=DECAY, eval_every=5), execution=execution)
    steps = by_step(tiny)
    average = steps[0]
    for weights in steps[1:]:
        average = {name: DECAY * average[name] + (1 - DECAY) * weights[name] for name in average}
    close(result, average)
    model = tiny.model()
    model.load_state_dict(average, strict=False)
    batch = CausalLM().collate(tiny.lm_features(40)[:5])
    total, units = CausalLM().loss({"logits": model(batch["input_ids"], batch["attention_mask"]).logits}, batch)
    assert lines(tmp_path)[-1]["loss"] == pytest.approx(total.item() / units, abs=1e-5)
    assert result.validation["loss"] == lines(tmp_path)[-1]["loss"]


@pytest.mark.parametrize("execution", ZERO)
def test_the_best_weights_are_kept_and_training_ends_when_nothing_gets_better(
    jobs: ModuleType, tiny: ModuleType, tmp_path: Path, execution: dict[str, Any]
) -> None:
    """At such a rate the loss rises again after a while."""
    given = params(eval_every=2, keep="best", patience=3, watch="tokens_that_never_are")
    with pytest.raises(StageError, match="no metric 'tokens_that_never_are'"):
        trained(jobs, tiny, tmp_path / "unknown", given, execution=execution)
    given = params(eval_every=2, keep="best", patience=3, learning_rate=0.5, max_steps=60)
    result = trained(jobs, tiny, tmp_path, given, execution=execution)
    found = lines(tmp_path)
    best = min(found, key=lambda line: line["loss"])
    assert result.summary["best_step"] == best["step"] and result.validation["loss"] == best["loss"]
    assert result.steps == found[-1]["step"] == best["step"] + 6 < 60, "three evaluations later it is over"
    stopped = params(max_steps=best["step"], learning_rate=0.5)
    close(result, dict(trained(jobs, tiny, tmp_path / "again", stopped, execution=execution).model.named_parameters()))


@pytest.mark.parametrize("execution", ZERO)
def test_a_resumed_training_keeps_what_an_undisturbed_one_keeps(
    jobs: ModuleType, tiny: ModuleType, tmp_path: Path, execution: dict[str, Any]
) -> None:
    given = params(ema=DECAY, eval_every=2, keep="best", patience=5)
    whole = trained(jobs, tiny, tmp_path / "whole", given, execution=execution)
    questions = iter(range(100))
    with pytest.raises(Preempted):
        stop = {"stop_requested": lambda: next(questions) >= 7}
        trained(jobs, tiny, tmp_path / "a", given, execution=execution, store=tmp_path / "s", **stop)
    again = trained(jobs, tiny, tmp_path / "b", given, execution=execution, store=tmp_path / "s")
    for name, value in whole.model.named_parameters():
        assert torch.equal(value, dict(again.model.named_parameters())[name]), name
    assert again.summary["best_step"] == whole.summary["best_step"] and again.validation == whole.validation


def test_nothing_to_judge_by_is_refused(jobs: ModuleType, tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="set `eval_every`"):
        params(keep="best")
    given = params(keep="best", eval_every=2)
    with pytest.raises(StageError, match="no validation split"):
        train(jobs.make_job(tmp_path, given), tiny.model(), CausalLM(), tiny.lm_features(40), [], given)
