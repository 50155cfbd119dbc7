"""Channels of convolutional nets: exact where those that go did nothing, importance by its definition, real shrinkage."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import AutoModelForImageClassification

from infra.errors import StageError
from tasks.stages.prune import Params

pytest.importorskip("torch_pruning")

from tasks.compression.pruning.channels import channel_importance, narrower, without_channels


def batches_of(pictures: ModuleType, count: int = 6) -> Any:
    return [pictures.Pictures().collate(pictures.features(count))]


BOTTLENECK = {"layer_type": "bottleneck", "hidden_sizes": [64, 128], "depths": [1, 2]}


@pytest.mark.parametrize("fields", [{}, BOTTLENECK], ids=["basic", "bottleneck"])
def test_removing_channels_that_nobody_reads_changes_nothing(
    pictures: ModuleType, fields: dict[str, Any], tmp_path: Path
) -> None:
    model, batches = pictures.model("resnet", **fields), batches_of(pictures)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.shape[1] > 1:
            module.weight.data[:, ::2] = 0
    for name, score in channel_importance(model, batches, pictures.Pictures()).items():
        assert not score[::2].any() and score[1::2].any(), name
    without_channels(model, batches, pictures.Pictures(), 0.5).save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path).train(False)
    assert again.config.hidden_sizes == [n // 2 for n in model.config.hidden_sizes]
    inputs = {"pixel_values": torch.rand(5, 1, 16, 16)}
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits)


def test_importance_is_the_squared_slope_over_all_that_read_a_channel(pictures: ModuleType) -> None:
    """A stage's channels are read by its second block and by both ways into the next stage."""
    model, objective = pictures.model("resnet"), pictures.Pictures()
    found = channel_importance(model, batches_of(pictures, 3), objective)
    stages = "resnet.encoder.stages"
    readers = [
        model.get_submodule(f"{stages}.{name}.convolution").get_parameter("weight").data
        for name in ("1.layers.1.layer.0", "2.layers.0.shortcut", "2.layers.0.layer.0")
    ]
    (writer,) = (
        w for w in found if w.startswith(f"{stages}.1.") and (".shortcut." in w or w.endswith("1.convolution"))
    )
    h = 1e-2
    batch = batches_of(pictures, 3)[0]
    for channel in (0, 5, 31):
        losses = []
        for factor in (1 + h, 1 - h):
            kept = [weight[:, channel].clone() for weight in readers]
            for weight in readers:
                weight[:, channel] *= factor
            with torch.no_grad():
                logits = model(pixel_values=batch["pixel_values"]).logits.double()
            losses.append(nn.functional.cross_entropy(logits, batch["labels"], reduction="none"))
            for weight, values in zip(readers, kept, strict=True):
                weight[:, channel] = values
        expected = ((losses[0] - losses[1]) / (2 * h)).square().sum()
        assert float(found[writer][channel]) == pytest.approx(float(expected), rel=5e-2, abs=1e-6)


@pytest.mark.parametrize("family", ["resnet", "convnext", "mobilenet_v1"])
def test_families_open_with_fewer_channels_and_the_same_classes(
    pictures: ModuleType, family: str, tmp_path: Path
) -> None:
    model = pictures.model(family)
    without_channels(model, batches_of(pictures), pictures.Pictures(), 0.5).save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path).train(False)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, again))
    assert after < 0.35 * before
    logits = again(pixel_values=torch.rand(2, 1, 16, 16)).logits
    assert logits.shape == (2, pictures.CLASSES) and logits.isfinite().all()


def test_a_cut_network_may_not_keep_the_statistics_of_the_whole_one() -> None:
    heal = {"epochs": 1, "freeze_batch_norm": True}
    with pytest.raises(ValidationError, match="what is left gives other values"):
        Params.model_validate({"model": "m", "data": "d", "method": "channels", "heal": heal})


def test_what_a_config_cannot_say_is_refused_by_name(pictures: ModuleType) -> None:
    batches, objective = batches_of(pictures), pictures.Pictures()
    with pytest.raises(StageError, match="channels of vit cannot go"):
        narrower(pictures.model("vit").config, 0.5)
    with pytest.raises(StageError, match="every channel would stay"):
        without_channels(pictures.model("resnet"), batches, objective, 0.99)
    # At 8 channels each the first stage would need no shortcut, and the weights of one are there.
    model = pictures.model("resnet", embedding_size=16, hidden_sizes=[24, 32], depths=[1, 1])
    with pytest.raises(StageError, match=r"what would be left: resnet\.encoder\.stages\.0\.layers\.0\.shortcut"):
        without_channels(model, batches, objective, 0.4)
