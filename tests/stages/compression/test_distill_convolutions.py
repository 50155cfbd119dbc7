"""What a student learns from inside a convolutional net: the outputs of stages, place by place, and nothing else."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from infra.errors import StageError
from tasks.compression.distillation.loss import DistillationLoss
from tasks.training.loop.train import train
from tasks.training.settings import TeacherParams, TrainingParams


def loss_of(pictures: ModuleType, student: Any, teacher: Any, **given: Any) -> DistillationLoss:
    params = TeacherParams.model_validate({"alpha": 0.0, "hidden": 1.0, **given})
    return DistillationLoss(student, teacher, pictures.Pictures(), params, torch.device("cpu"))


def test_the_distance_is_that_of_directions_at_each_place_of_each_stage(pictures: ModuleType) -> None:
    teacher, student = pictures.model("resnet"), pictures.model("resnet", depths=[1, 1, 1])
    loss = loss_of(pictures, student, teacher)
    batch = pictures.Pictures().collate(pictures.features(5))
    inputs = {"pixel_values": batch["pixel_values"]}
    assert loss.parts(batch) == [5]
    with torch.no_grad():
        outputs = {"logits": student(**inputs).logits}
        found = loss(outputs, batch | {"step_units": torch.tensor([5.0, 5.0])})
        labels = pictures.Pictures().loss(outputs, batch)[0]
        # transformers' own account of what comes out of the stages, which are after what comes out of the first part.
        states = [model(**inputs, output_hidden_states=True).hidden_states[1:] for model in (student, teacher)]
    expected = [
        (normalize(s, dim=1) - normalize(t, dim=1)).square().sum(1).mean((1, 2)).sum()
        for s, t in zip(*states, strict=True)
    ]
    assert len(expected) == 3
    torch.testing.assert_close(found, labels + torch.stack(expected).mean())


@pytest.mark.parametrize("family", ["resnet", "convnext"])
def test_a_narrower_student_is_trained_through_projections_that_do_not_ship(
    jobs: ModuleType, pictures: ModuleType, tmp_path: Path, family: str
) -> None:
    teacher = pictures.model(family)
    student = pictures.model(family, hidden_sizes=[8 + 8 * i for i in range(len(teacher.config.hidden_sizes))])
    names = set(student.state_dict())
    loss = loss_of(pictures, student, teacher, alpha=0.5)
    fields = {"max_steps": 12, "global_batch_size": 16, "learning_rate": 1e-2}
    params, examples = TrainingParams.model_validate(fields), pictures.features(64)
    batch = pictures.Pictures().collate(examples[:16]) | {"step_units": torch.tensor([16.0, 16.0])}

    def distance() -> float:
        with torch.no_grad():
            return float(loss({"logits": student.train(False)(pixel_values=batch["pixel_values"]).logits}, batch))

    before = distance()
    job = jobs.make_job(tmp_path, params)
    result = train(job, student, pictures.Pictures(), examples, [], params, loss_fn=loss, parts=loss.parts)
    assert distance() < 0.9 * before
    loss.finished(result.model)
    assert set(result.model.state_dict()) == names


def test_what_cannot_be_compared_is_refused_by_name(pictures: ModuleType) -> None:
    resnet, vit = pictures.model("resnet"), pictures.model("vit")
    with pytest.raises(StageError, match="ResNetForImageClassification has no layers whose attention"):
        loss_of(pictures, pictures.model("resnet"), resnet, attention=1.0)
    with pytest.raises(StageError, match="are of two kinds"):
        loss_of(pictures, vit, resnet)
    loss = loss_of(pictures, pictures.model("resnet", downsample_in_first_stage=True), resnet)
    batch = pictures.Pictures().collate(pictures.features(2))
    logits = loss.student(pixel_values=batch["pixel_values"]).logits
    with pytest.raises(StageError, match=r"states are \(2, 2\) places where its teacher's are \(4, 4\)"):
        loss({"logits": logits}, batch | {"step_units": torch.tensor([2.0, 2.0])})


def test_a_vit_learns_from_the_layers_and_the_attention_of_another(pictures: ModuleType) -> None:
    student = pictures.model("vit", num_hidden_layers=1)
    loss = loss_of(pictures, student, pictures.model("vit"), attention=1.0)
    batch = pictures.Pictures().collate(pictures.features(3))
    outputs = {"logits": student(pixel_values=batch["pixel_values"]).logits}
    found = loss(outputs, batch | {"step_units": torch.tensor([3.0, 3.0])})
    assert float(found.detach()) > float(pictures.Pictures().loss(outputs, batch)[0].detach())
