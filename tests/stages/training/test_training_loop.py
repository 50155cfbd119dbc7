"""The loop against a bare torch loop, and the ways a training run ends that are not its last step."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed.accelerator import get_accelerator

from infra.errors import Preempted, StageError
from tasks.objectives.text.causal_lm import CausalLM
from tasks.training.engine.batch import BatchSplit
from tasks.training.loop.record import convergence
from tasks.training.loop.result import TrainResult
from tasks.training.loop.sampler import Sampler
from tasks.training.loop.schedule import learning_rate_factor
from tasks.training.loop.train import train
from tasks.training.settings import TrainingParams

STEPS = 12


def params(**given: Any) -> TrainingParams:
    return TrainingParams.model_validate(
        {"max_steps": STEPS, "global_batch_size": 8, "learning_rate": 1e-2, "max_grad_norm": 0.5, "seed": 3, **given}
    )


class After:
    """A stop request that comes at the n-th question."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def run(
    jobs: ModuleType,
    tiny: ModuleType,
    folder: Path,
    *,
    type: str = "llama",
    given: TrainingParams | None = None,
    **job: Any,
) -> TrainResult:
    features = tiny.lm_features(40)
    made = jobs.make_job(folder, given or params(), **job)
    return train(made, tiny.model(type), CausalLM(), features, features[:5], given or params())


def weights(result: TrainResult) -> dict[str, torch.Tensor]:
    return dict(result.model.named_parameters())


def lines(folder: Path, name: str = "train") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"records/{name}.jsonl").read_text().splitlines()]


def alone_at(zero_stage: int) -> dict[str, Any]:
    """Execution settings with which one rank really trains at that ZeRO stage: it has to offload something."""
    return {"zero_stage": zero_stage, "offload_optimizer": zero_stage > 0}


@pytest.mark.parametrize(("zero_stage", "micro"), [(0, 8), (0, 2), (1, 4), (2, 2), (3, 4)])
def test_equals_a_bare_torch_loop(
    jobs: ModuleType, tiny: ModuleType, tmp_path: Path, zero_stage: int, micro: int
) -> None:
    """Catches a wrong average under accumulation (rows differ in length), a late schedule, decay of norms, clipping."""
    execution = {**alone_at(zero_stage), "per_device_train_batch_size": micro}
    result = run(jobs, tiny, tmp_path, execution=execution)
    features, given, reference = tiny.lm_features(40), params(), tiny.model()
    sampler = Sampler(40, 3, BatchSplit(8, 1, 8))
    losses = tiny.plain_training(
        reference,
        CausalLM(),
        features,
        [sampler.global_batch(step) for step in range(STEPS)],
        lambda step: 1e-2 * learning_rate_factor(given.schedule, step, STEPS),
        weight_decay=given.optimizer.weight_decay,
        max_grad_norm=0.5,
    )
    assert [line["loss"] for line in lines(tmp_path)] == pytest.approx(losses, abs=2e-5)
    assert losses[-1] < losses[0] - 0.5
    trained = weights(result)
    for name, value in reference.named_parameters():
        torch.testing.assert_close(trained[name], value, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    "execution",
    [
        {"activation_checkpointing": True},
        {"activation_checkpointing": True, "offload_optimizer": True, "zero_stage": 3},
        {"offload_optimizer": True, "zero_stage": 1},
        {"offload_optimizer": True, "zero_stage": 2},
        {"offload_optimizer": True, "offload_parameters": True, "zero_stage": 3},
        {"compile": "aot_eager"},
    ],
    ids=lambda execution: "-".join(map(str, execution)),
)
def test_what_saves_memory_or_time_changes_nothing_else(
    jobs: ModuleType, tiny: ModuleType, tmp_path: Path, execution: dict[str, Any]
) -> None:
    """gpt2 has dropout: recomputed activations must meet the same noise. Stopped and resumed on the way."""
    plain = run(jobs, tiny, tmp_path / "plain", type="gpt2")
    shared = {"type": "gpt2", "execution": execution, "store": tmp_path / "store"}
    with pytest.raises(Preempted):
        run(jobs, tiny, tmp_path / "stopped", stop_requested=After(6), **shared)
    result = run(jobs, tiny, tmp_path / "resumed", **shared)
    for name, value in weights(plain).items():
        # Softmax does not see the key bias: its gradient is rounding noise, which Adam blows up to whole steps.
        seen = [range(32), range(64, 96)] if name.endswith("c_attn.bias") else [slice(None)]
        for part in seen:
            torch.testing.assert_close(weights(result)[name][part], value[part], atol=2e-4, rtol=0)
    assert not result.model.is_activation_checkpointing


def test_an_unknown_compiler_is_refused_with_those_there_are(
    jobs: ModuleType, tiny: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=r"(?s)no backend 'fast'.*inductor"):
        run(jobs, tiny, tmp_path, execution={"compile": "fast"})


@pytest.mark.parametrize(("type", "zero_stage"), [("gpt2", 0), ("llama", 1), ("llama", 2), ("llama", 3)])
def test_a_resumed_training_ends_bit_for_bit_where_the_undisturbed_one_does(
    jobs: ModuleType, tiny: ModuleType, tmp_path: Path, type: str, zero_stage: int
) -> None:
    """gpt2 has dropout: the noise must come back too."""
    execution = alone_at(zero_stage)
    straight = run(jobs, tiny, tmp_path / "straight", type=type, execution=execution)
    shared = {"type": type, "execution": execution, "store": tmp_path / "store"}
    with pytest.raises(Preempted, match="before step 7 of 12"):
        run(jobs, tiny, tmp_path / "stopped", stop_requested=After(6), **shared)
    resumed = run(jobs, tiny, tmp_path / "resumed", **shared)
    for name, value in weights(straight).items():
        assert torch.equal(weights(resumed)[name], value), name
    assert [line["step"] for line in lines(tmp_path / "resumed")] == list(range(1, STEPS + 1))
    assert [line["loss"] for line in lines(tmp_path / "resumed")] == [
        line["loss"] for line in lines(tmp_path / "straight")
    ]
    assert (resumed.work, resumed.seen) == (straight.work, straight.seen)


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (3, 1)])
def test_a_checkpoint_loads_at_another_zero_stage(
    jobs: ModuleType, tiny: ModuleType, tmp_path: Path, before: int, after: int
) -> None:
    straight = run(jobs, tiny, tmp_path / "straight", execution=alone_at(before))
    with pytest.raises(Preempted):
        run(jobs, tiny, tmp_path / "a", stop_requested=After(6), execution=alone_at(before), store=tmp_path / "s")
    moved = run(jobs, tiny, tmp_path / "b", execution=alone_at(after), store=tmp_path / "s")
    for name, value in weights(straight).items():
        torch.testing.assert_close(weights(moved)[name], value, atol=1e-5, rtol=0)


def slowly(*args: Any, **values: Any) -> None:
    """A progress callback: steps long enough for the process that stores checkpoints to keep up."""
    time.sleep(0.15)


def test_checkpoints_come_at_their_cadence_and_old_ones_go(jobs: ModuleType, tiny: ModuleType, tmp_path: Path) -> None:
    every = {"every": 3, "keep": 2, "permanent_every": 4}
    made = jobs.make_job(tmp_path, params(), execution={"checkpoint": every}, progress=slowly)
    train(made, tiny.model(), CausalLM(), tiny.lm_features(40), [], params())
    # One still under way lets its turn pass, so which steps are kept depends on the disk.
    steps = made.checkpoints.steps()
    assert {12} < set(steps) <= {3, 4, 6, 8, 9, 12} and any(step % 3 == 0 for step in steps[:-1])
    assert any("checkpoint_stall" in line for line in lines(tmp_path))
    made.checkpoints.clear(permanent_every=4)
    assert made.checkpoints.steps() == [step for step in steps if step % 4 == 0]
    made.checkpoints.clear()
    assert not list(made.checkpoints.store.walk("checkpoints"))


def test_evaluation_comes_every_n_steps_and_after_the_last(jobs: ModuleType, tiny: ModuleType, tmp_path: Path) -> None:
    result = run(jobs, tiny, tmp_path, given=params(eval_every=5))
    found = lines(tmp_path, "validation")
    assert [line["step"] for line in found] == [5, 10, 12]
    assert result.validation["loss"] == found[-1]["loss"] == pytest.approx(result.validation["cross_entropy"], rel=1e-6)


def test_the_way_to_a_target_is_read_from_the_evaluations() -> None:
    """Loss has to come down to its target, accuracy up; calibration errors too are better when less."""
    values = [(2, 1.5, 0.4, 0.30), (4, 1.0, 0.6, 0.20), (6, 1.2, 0.8, 0.05)]
    said = [
        {"step": step, "trained_seconds": step / 10, "tokens": 100 * step, "loss": loss, "accuracy": right, "ece": ece}
        for step, loss, right, ece in values
    ]
    assert convergence(said, "loss", 1.0, "tokens") == {
        "steps_to_loss_1": 4.0,
        "seconds_to_loss_1": 0.4,
        "tokens_to_loss_1": 400.0,
    }
    assert convergence(said, "accuracy", 0.7, "tokens")["steps_to_accuracy_0.7"] == 6
    assert convergence(said, "ece", 0.1, "tokens")["steps_to_ece_0.1"] == 6
    assert convergence(said, "loss", 0.9, "tokens") == convergence(said, "f1", 0.1, "tokens") == {}


def test_a_training_tells_when_it_met_its_targets(jobs: ModuleType, tiny: ModuleType, tmp_path: Path) -> None:
    run(jobs, tiny, tmp_path / "first", given=params(eval_every=3))
    found = lines(tmp_path / "first", "validation")
    target = round((found[1]["loss"] + found[2]["loss"]) / 2, 3)
    assert found[1]["loss"] > target > found[2]["loss"]
    result = run(jobs, tiny, tmp_path / "second", given=params(eval_every=3), execution={"targets": {"loss": target}})
    assert result.metrics()[f"steps_to_loss_{target:g}"] == 9


def test_progress_tells_step_loss_and_speed(jobs: ModuleType, tiny: ModuleType, tmp_path: Path) -> None:
    seen: list[tuple[int, int, set[str]]] = []
    run(jobs, tiny, tmp_path, progress=lambda step, total, **values: seen.append((step, total, set(values))))
    assert seen == [(i + 1, STEPS, {"loss", "tokens_per_second"}) for i in range(STEPS)]


def test_a_loss_that_is_not_finite_ends_the_stage_before_the_weights_are_touched(
    jobs: ModuleType, tiny: ModuleType, tmp_path: Path
) -> None:
    model = tiny.model()
    before = {name: value.clone() for name, value in model.named_parameters()}
    made = jobs.make_job(tmp_path, params(), name="base")
    with pytest.raises(StageError, match=r"stages\.base: the loss became nan at step 4 of 12 \(4 in a row\)") as caught:
        train(
            made,
            model,
            CausalLM(),
            tiny.lm_features(40),
            [],
            params(),
            loss_fn=lambda outputs, batch: CausalLM().loss(outputs, batch)[0] * float("nan"),
        )
    assert "learning_rate" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert made.checkpoints.steps() == []


def test_a_batch_that_does_not_divide_is_refused(jobs: ModuleType, tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"stages\.stage\.global_batch_size"):
        run(jobs, tiny, tmp_path, execution={"per_device_train_batch_size": 3})


def test_bf16_trains_and_keeps_fp32_weights(jobs: ModuleType, tiny: ModuleType, tmp_path: Path) -> None:
    result = run(jobs, tiny, tmp_path, execution={"precision": "bf16"})
    losses = [line["loss"] for line in lines(tmp_path)]
    assert losses[-1] < losses[0] - 0.5
    assert all(value.dtype == torch.float32 for value in weights(result).values())


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_fp16_scales_its_loss_and_resumes_with_the_scale(
    jobs: ModuleType, tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero_stage: int
) -> None:
    """Refused on a CPU because it is slow there; the arithmetic is the same, so the refusals are lifted to test it."""
    execution = {"precision": "fp16", "zero_stage": zero_stage}
    with pytest.raises(StageError, match="fp16 needs a GPU"):
        run(jobs, tiny, tmp_path / "refused", execution=execution)
    monkeypatch.setattr("tasks.training.engine.engine._check_features", lambda *given: None)
    monkeypatch.setattr(type(get_accelerator()), "is_fp16_supported", lambda self: True)
    deepspeed = {"fp16": {"initial_scale_power": 24, "hysteresis": 1}}
    execution |= {"deepspeed": deepspeed}
    straight = run(jobs, tiny, tmp_path / "straight", execution=execution, given=params(max_steps=24))
    scales = [line["loss_scale"] for line in lines(tmp_path / "straight")]
    assert 1 <= scales[-1] < 2**24, "it overflowed at first, and the scale came down"
    losses = [line["loss"] for line in lines(tmp_path / "straight")]
    assert losses[-1] < losses[0] - 0.5
    shared = {"execution": execution, "store": tmp_path / "store", "given": params(max_steps=24)}
    with pytest.raises(Preempted):
        run(jobs, tiny, tmp_path / "stopped", stop_requested=After(16), **shared)
    resumed = run(jobs, tiny, tmp_path / "resumed", **shared)
    assert [line["loss_scale"] for line in lines(tmp_path / "resumed")] == scales
    for name, value in weights(straight).items():
        assert torch.equal(weights(resumed)[name], value), name


def test_what_was_seen_is_what_was_trained_on(jobs: ModuleType, tiny: ModuleType, tmp_path: Path) -> None:
    """Baselines count exactly these examples; counting others would compare unlike things."""
    touched: set[int] = set()

    class Spy(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            touched.add(index)
            return super().__getitem__(index)

    given = params(max_steps=3)
    made = jobs.make_job(tmp_path, given)
    result = train(made, tiny.model(), CausalLM(), Spy(tiny.lm_features(40)), [], given)
    assert result.seen == sorted(touched) and len(touched) == 24
    assert np.isfinite(result.summary["tokens_per_second"]) and result.work > 0
