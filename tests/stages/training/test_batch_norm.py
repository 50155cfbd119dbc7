"""BatchNorm that trains: what is normalised together decides the result, and how a step is split does not."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from infra.errors import Preempted, StageError
from tasks.training.engine.batch import BatchSplit, split_batch
from tasks.training.engine.batch_norm import _sizes
from tasks.training.loop.result import TrainResult
from tasks.training.loop.sampler import Sampler
from tasks.training.loop.train import train
from tasks.training.settings import TrainingParams
from tasks.training.tuning.freezing import Freeze, frozen_names

BATCH, STEPS, EXAMPLES = 32, 4, 80


def trained(
    jobs: ModuleType,
    pictures: ModuleType,
    folder: Path,
    *,
    model: Any = None,
    job: dict[str, Any] | None = None,
    execution: dict[str, Any] | None = None,
    **given: Any,
) -> TrainResult:
    fields = {"max_steps": STEPS, "global_batch_size": BATCH, "learning_rate": 1e-3, "seed": 3, "max_grad_norm": 0.0}
    plain = {"schedule": {"name": "constant", "warmup_ratio": 0.0}, "optimizer": {"eps": 1e-4}}
    params = TrainingParams.model_validate({**fields, **plain, **given})
    made = jobs.make_job(folder, params, execution=execution or {}, **(job or {}))
    model, examples = model or pictures.model("resnet"), pictures.features(EXAMPLES)
    return train(made, model, pictures.Pictures(), examples, examples[:8], params)


def test_micro_batches_change_nothing_and_groups_do(jobs: ModuleType, pictures: ModuleType, tmp_path: Path) -> None:
    states = {
        (group, micro): trained(
            jobs,
            pictures,
            tmp_path / f"{group}-{micro}",
            norm_group=group,
            execution={"per_device_train_batch_size": micro},
        ).model.state_dict()
        for group, micro in ((8, 8), (8, 32), (32, 32))
    }
    for name, value in states[8, 8].items():
        torch.testing.assert_close(states[8, 32][name], value, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    apart = states[8, 8]["classifier.1.weight"] - states[32, 32]["classifier.1.weight"]
    assert float(apart.abs().max()) > 1e-4, "another normalisation is another result"


def test_one_group_a_step_is_what_torch_trains(jobs: ModuleType, pictures: ModuleType, tmp_path: Path) -> None:
    """Weights, running statistics and their counter, against a bare loop."""
    model, objective, examples = pictures.model("resnet"), pictures.Pictures(), pictures.features(EXAMPLES)
    decay = [{"params": [p], "weight_decay": 0.01 if p.ndim > 1 else 0.0} for p in model.parameters()]
    optimizer = torch.optim.AdamW(decay, lr=1e-3, eps=1e-4)
    model.train()
    for step in range(STEPS):
        chosen = [examples[i] for i in Sampler(EXAMPLES, 3, BatchSplit(BATCH, 1, BATCH)).global_batch(step)]
        batch = objective.collate(chosen)
        total, units = objective.loss({"logits": model(pixel_values=batch["pixel_values"]).logits}, batch)
        (total / units).backward()
        optimizer.step()
        optimizer.zero_grad()
    found = trained(jobs, pictures, tmp_path).model.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_a_resumed_training_ends_in_the_same_weights_and_statistics(
    jobs: ModuleType, pictures: ModuleType, tmp_path: Path
) -> None:
    whole = trained(jobs, pictures, tmp_path / "whole", ema=0.5).model.state_dict()
    asked = iter([False, False, *[True] * 9])
    cut = {"stop_requested": lambda: next(asked), "store": tmp_path / "store"}
    with pytest.raises(Preempted):
        trained(jobs, pictures, tmp_path / "cut", job=cut, ema=0.5)
    again = trained(jobs, pictures, tmp_path / "again", job={"store": tmp_path / "store"}, ema=0.5)
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, whole[name]), name


def moved(model: Any, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_a_frozen_batch_norm_keeps_weights_and_statistics(
    jobs: ModuleType, pictures: ModuleType, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in pictures.model("resnet").state_dict().items()}
    # Nothing is normalised over a batch, so micro-batches may be of any size.
    execution = {"per_device_train_batch_size": 2}
    result = trained(jobs, pictures, tmp_path, freeze_batch_norm=True, execution=execution)
    changed = moved(result.model, before)
    assert "resnet.encoder.stages.2.layers.0.layer.1.convolution.weight" in changed
    assert not any(".normalization." in name for name in changed)
    assert all(parameter.requires_grad for parameter in result.model.parameters()), "as it was given"


def test_frozen_blocks_keep_their_statistics(jobs: ModuleType, pictures: ModuleType, tmp_path: Path) -> None:
    model = pictures.model("resnet")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for name in frozen_names(model, Freeze(all_but_last=1)):
        model.get_parameter(name).requires_grad_(False)
    changed = moved(trained(jobs, pictures, tmp_path, model=model).model, before)
    assert "resnet.encoder.stages.2.layers.0.shortcut.normalization.running_mean" in changed
    assert all(name.startswith(("resnet.encoder.stages.2.", "classifier.")) for name in changed)


def test_micro_batches_hold_whole_groups() -> None:
    assert split_batch(64, 2, "auto", norm_group=32) == BatchSplit(64, 2, 32, 32)
    assert split_batch(96, 1, "auto", norm_group=16, examples_per_loss=24) == BatchSplit(96, 1, 96, 48)
    assert split_batch(40, 1, "auto", norm_group=32).halved() is None, "a smaller last group stays with the others"
    with pytest.raises(StageError, match="16 each, which groups of 32 examples for BatchNorm") as caught:
        split_batch(32, 2, "auto", norm_group=32)
    assert "sizes: 64; or `norm_group` can be: 2, 4, 8, 16" in str(caught.value.hint)
    with pytest.raises(StageError, match="micro-batches of 8 would tear apart groups of 32"):
        split_batch(64, 1, 8, norm_group=32)
    with pytest.raises(StageError, match="one example a step"):
        split_batch(2, 2, "auto", norm_group=32)
    assert _sizes(65, 32) == [32, 33] and _sizes(40, 32) == [32, 8] and _sizes(1, 32) == [1]


def test_settings_of_batch_norm_are_refused_where_there_is_none(
    jobs: ModuleType, pictures: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match="ViTForImageClassification has no BatchNorm"):
        trained(jobs, pictures, tmp_path, model=pictures.model("vit"), freeze_batch_norm=True)
