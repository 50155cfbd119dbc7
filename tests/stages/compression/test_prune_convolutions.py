"""Single weights of convolutional nets: a convolution is a matrix of patches, and each method prunes it as one."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from infra.errors import StageError
from tasks.compression.pruning.calibration import as_stored, matrix, patches, second_moments
from tasks.compression.pruning.gates import gate_slopes
from tasks.compression.pruning.weights import Sparsity, prune_weights
from tasks.models.structure.parts import matrices


def small(pictures: ModuleType, family: str) -> Any:
    """With fewer inputs to each convolution than there are patches."""
    return pictures.model(family, **({"hidden_sizes": [16, 16], "depths": [1, 1]} if family == "resnet" else {}))


def batches_of(pictures: ModuleType, count: int = 8) -> Any:
    return [pictures.Pictures().collate(pictures.features(count))]


@pytest.mark.parametrize(
    "settings",
    [{"stride": 2, "padding": 1}, {"padding": "same", "dilation": 2}, {"padding": (2, 0), "padding_mode": "reflect"}],
    ids=["stride", "dilation", "reflected"],
)
def test_a_convolution_is_its_matrix_times_its_patches(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Conv2d(6, 5, (3, 2), bias=False, **settings), torch.randn(2, 6, 9, 8)
    found = patches("layer", layer, inputs) @ matrix(layer).T
    torch.testing.assert_close(found.transpose(1, 2).reshape(2, 5, -1), layer(inputs).flatten(2))
    assert torch.equal(as_stored(layer, matrix(layer)), layer.weight)


@pytest.mark.parametrize("family", ["resnet", "convnext"])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("sparsity", [Sparsity(0.5), Sparsity(0.5, 2, 4)], ids=["half", "2:4"])
def test_the_masks_are_where_the_weights_are_not_zero(
    pictures: ModuleType, family: str, method: Any, sparsity: Sparsity
) -> None:
    model = small(pictures, family)
    masks = prune_weights(model, batches_of(pictures, 64), method, sparsity)
    weights = dict(model.named_parameters())
    assert len(masks) == sum(map(len, matrices(model)))
    for name, mask in masks.items():
        assert torch.equal(weights[name] != 0, mask), name
        assert float(mask.float().mean()) == pytest.approx(0.5, abs=0.01)
        if sparsity.m and mask.ndim == 4:
            assert (mask.unflatten(1, (-1, 4)).sum(2) == 2).all(), "two of four channels side by side"


def test_what_the_rest_makes_up_for_moves_the_output_least(pictures: ModuleType) -> None:
    """SparseGPT minimises the error of what a convolution gives; magnitude does not look at it."""
    batches, errors = batches_of(pictures, 64), {}
    for method in ("magnitude", "sparsegpt"):
        model = small(pictures, "resnet")
        name = "resnet.encoder.stages.0.layers.0.layer.0.convolution"
        layer = model.get_submodule(name)
        moments = second_moments(model, {name: layer}, batches, full=True)[name]
        before = matrix(layer).double()
        prune_weights(model, batches, method, Sparsity(0.5))
        change = matrix(layer).double() - before
        errors[method] = float((change @ moments * change).sum() / (before @ moments * before).sum())
    assert 0 < errors["sparsegpt"] < 0.7 * errors["magnitude"]


def test_channels_that_no_pattern_divides_and_groups_are_refused(pictures: ModuleType) -> None:
    model = pictures.model("resnet", hidden_sizes=[18, 32, 64])
    with pytest.raises(StageError, match="rows of 18 weights do not divide into groups of 4"):
        prune_weights(model, [], "magnitude", Sparsity(0.5, 2, 4))
    with pytest.raises(StageError, match="layer is a convolution in 2 groups"):
        patches("layer", nn.Conv2d(4, 4, 3, groups=2), torch.randn(1, 4, 8, 8))


@pytest.mark.parametrize("family", ["resnet", "convnext", "vit"])
def test_a_gates_slope_is_how_the_loss_moves_when_a_channel_fades(pictures: ModuleType, family: str) -> None:
    """Against finite differences, of each example: scale the weights that read an input by 1 +- h."""
    model, objective = pictures.model(family).double(), pictures.Pictures()
    batch = objective.collate(pictures.features(3))
    batch["pixel_values"] = batch["pixel_values"].double()
    names = [next(iter(matrices(model)[1])), list(matrices(model)[-1])[-1]]
    if family != "vit":
        names.append("classifier.1" if family == "resnet" else "classifier")
    (found,) = gate_slopes(model, [batch], objective, names)
    h = 1e-4
    for name in names:
        weight = model.get_submodule(name).get_parameter("weight").data
        for channel in (0, 7):
            losses = []
            for factor in (1 + h, 1 - h):
                kept = weight[:, channel].clone()
                weight[:, channel] *= factor
                with torch.no_grad():
                    logits = model(pixel_values=batch["pixel_values"]).logits
                losses.append(nn.functional.cross_entropy(logits, batch["labels"], reduction="none"))
                weight[:, channel] = kept
            torch.testing.assert_close(found[name][:, channel], (losses[0] - losses[1]) / (2 * h), atol=1e-6, rtol=1e-4)
