"""Which layers or blocks a model has: for pictures as for texts, and refused in words where a method has none."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from infra.errors import StageError
from tasks.compression.distillation.student import student_from
from tasks.compression.pruning.ffn_width import find_feed_forwards
from tasks.compression.pruning.layers import layer_importance, without_layers
from tasks.models.structure.parts import depths, layer_names, matrices
from tasks.training.engine.parameter_groups import Tuning, parameter_groups
from tasks.training.settings import OptimizerParams
from tasks.training.tuning import lora
from tasks.training.tuning.freezing import Freeze, frozen_names

BLOCKS = {
    "resnet": ["stages.0.layers.0", "stages.1.layers.0", "stages.1.layers.1", "stages.2.layers.0"],
    "convnext": ["stages.0.layers.0", "stages.1.layers.0", "stages.1.layers.1"],
    "mobilenet": [f"layer.{i}" for i in range(16)],
    "vit": [f"layers.{i}" for i in range(3)],
}


@pytest.mark.parametrize("family", sorted(BLOCKS))
def test_blocks_stand_in_their_order_and_everything_else_below_or_on_top(pictures: ModuleType, family: str) -> None:
    model = pictures.model(family)
    names = layer_names(model)
    assert [name.partition(".")[2].removeprefix("encoder.") for name in names] == BLOCKS[family]
    place = depths(model)
    for i, name in enumerate(names):
        inside = {place[parameter] for parameter in place if parameter.startswith(f"{name}.")}
        assert inside == {i + 1}, name
    first = next(iter(place))
    assert (
        place[first] == 0
        and place["classifier.weight" if family != "resnet" else "classifier.1.weight"] == len(names) + 1
    )
    assert list(place.values()) == sorted(place.values()), "what is read later never lies below what is read before"


def test_what_makes_a_stage_narrower_goes_with_its_first_block(pictures: ModuleType) -> None:
    place = depths(pictures.model("convnext"))
    down = {name: at for name, at in place.items() if ".downsampling_layer." in name}
    assert down and set(down.values()) == {2}


def test_matrices_are_the_linear_layers_and_convolutions_of_blocks(pictures: ModuleType) -> None:
    shapes = {
        family: [[tuple(m.weight.shape) for m in group.values()] for group in matrices(pictures.model(family))]
        for family in ("resnet", "convnext")
    }
    assert shapes["resnet"][1] == [(32, 16, 1, 1), (32, 16, 3, 3), (32, 32, 3, 3)], "the shortcut too"
    assert shapes["convnext"] == [
        [(64, 16), (16, 64)],
        [(32, 16, 2, 2), (128, 32), (32, 128)],
        [(128, 32), (32, 128)],
    ], "no convolution of one channel each"


@pytest.mark.parametrize("family", ["resnet", "convnext", "mobilenet", "vit"])
def test_all_but_the_last_blocks_are_frozen_and_thaw_from_the_top(pictures: ModuleType, family: str) -> None:
    model = pictures.model(family)
    last = f"{layer_names(model)[-1]}."
    frozen = frozen_names(model, Freeze(all_but_last=1))
    learns = {name for name, _ in model.named_parameters()} - frozen
    assert {name for name in learns if name.startswith(last)}
    assert all(
        name.startswith((last, "classifier", "vit.layernorm", "convnext.layernorm", "mobilenet_v2.conv_1x1"))
        for name in learns
    )
    groups = parameter_groups(model, OptimizerParams(), Tuning(0.5, 0.8, frozenset(frozen)))
    assert {group["rate"] for group in groups} == {0.5**i for i in range(len(layer_names(model)) + 2)}
    assert sorted({group["thaws"] for group in groups})[-1] == pytest.approx(0.8)


@pytest.mark.parametrize("family", ["vit", "convnext"])
def test_low_rank_updates_and_muon_take_the_linear_layers(pictures: ModuleType, family: str) -> None:
    pytest.importorskip("peft")
    model = pictures.model(family)
    groups = parameter_groups(model, OptimizerParams(name="muon"))
    inside = {
        id(p) for name, p in model.named_parameters() if name.startswith(tuple(f"{n}." for n in layer_names(model)))
    }
    muon = {id(p) for group in groups if group["muon"] for p in group["params"]}
    assert muon == {id(p) for p in model.parameters() if p.ndim == 2 and id(p) in inside}
    inputs = {"pixel_values": torch.rand(2, 1, 16, 16)}
    with torch.no_grad():
        before = model(**inputs).logits
        lora.insert(model, lora.Lora(r=2), head={"classifier.weight", "classifier.bias"})
        assert sum("lora_A" in name for name, _ in model.named_parameters()) == {"vit": 18, "convnext": 6}[family]
        torch.testing.assert_close(lora.merge(model)(**inputs).logits, before)


def test_a_vit_loses_layers_and_neurons_like_a_transformer_of_texts(pictures: ModuleType) -> None:
    model, objective = pictures.model("vit"), pictures.Pictures()
    batches = [objective.collate(pictures.features(6))]
    smaller = without_layers(model, layer_importance(model, batches, objective), 0.67)
    assert smaller.config.num_hidden_layers == 2
    assert student_from(model, 1).config.num_hidden_layers == 1
    assert [len(block.inward) for block in find_feed_forwards(model)] == [1, 1, 1]


def test_what_a_convolutional_net_cannot_do_is_said_by_name(pictures: ModuleType) -> None:
    model = pictures.model("resnet")
    with pytest.raises(StageError, match="ResNetForImageClassification has no linear layers"):
        lora.insert(model, lora.Lora(), head={"classifier.1.weight", "classifier.1.bias"})
    with pytest.raises(StageError, match="muon updates matrices"):
        parameter_groups(model, OptimizerParams(name="muon"))
    for cut in (lambda: student_from(model, 1), lambda: find_feed_forwards(model)):
        with pytest.raises(StageError, match="no stack of equal layers"):
            cut()
