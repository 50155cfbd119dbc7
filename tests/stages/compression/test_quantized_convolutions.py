"""Convolutions in a graph and in training for it: named, folded with BatchNorm, eight bits by channel, never passed over."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from infra.errors import StageError
from tasks.compression.onnx.export import export_onnx
from tasks.compression.onnx.layers import input_moments, layers, weight
from tasks.compression.pruning.calibration import inputs_given_to
from tasks.compression.quantization import grids
from tasks.compression.quantization.fake_quantization import fake_quantized
from tasks.compression.quantization.float16 import convert_float16
from tasks.compression.quantization.grid_settings import GridParams
from tasks.compression.quantization.int8 import quantize_static_int8
from tasks.compression.quantization.sensitivity import movement, outputs
from tasks.models.card import ModelCard, write_card

FAMILIES = ("resnet", "convnext", "vit")


class Example:
    """As much of a processor as an export asks for."""

    def __init__(self, pictures: ModuleType) -> None:
        self.shape = (2, 1, pictures.SIDE, pictures.SIDE)

    def example(self, ports: Any, config: Any) -> dict[str, Any]:
        return {"pixel_values": np.random.default_rng(0).random(self.shape, dtype=np.float32)}


@pytest.fixture(scope="module")
def exported(pictures: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """family -> (torch model, its graph)."""
    found = {}
    for family in FAMILIES:
        model, file = pictures.model(family), tmp_path_factory.mktemp(family) / "model.onnx"
        export_onnx(model, pictures.Pictures().bound(Example(pictures)), file)
        model.config.save_pretrained(file.parent)
        write_card(file.parent, ModelCard({"name": "image_classification"}, None))
        found[family] = model, file
    return found


def batches_of(pictures: ModuleType, count: int = 16) -> list[dict[str, Any]]:
    return [{"pixel_values": np.stack([f["pixel_values"] for f in pictures.features(count)])}]


def graph_of(file: Path) -> onnx.GraphProto:
    return onnx.load(file).graph


@pytest.mark.parametrize("family", FAMILIES)
def test_nodes_are_called_what_the_model_calls_its_convolutions(
    exported: Any, pictures: ModuleType, family: str
) -> None:
    """Also those into whose weight a BatchNorm was folded; the graph gives what the model gave with its own."""
    model, file = exported[family]
    kinds = torch.nn.Linear | torch.nn.Conv2d
    expected = {name for name, module in model.named_modules() if isinstance(module, kinds)}
    found = layers(graph_of(file))
    assert {layer.name for layer in found} == expected and len(found) == len(expected)
    for layer in found:
        own = model.get_submodule(layer.name).weight
        assert weight(graph_of(file), layer).shape == (len(own), own[0].numel()) and layer.size == own.numel()
    assert "BatchNormalization" not in {node.op_type for node in graph_of(file).node}
    (batch,) = batches_of(pictures)
    with torch.no_grad():
        logits = model(pixel_values=torch.from_numpy(batch["pixel_values"])).logits.numpy()
    np.testing.assert_allclose(outputs(file, [batch])[0], logits, atol=1e-5)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("reduce_range", [False, True])
def test_weights_of_convolutions_have_a_scale_for_each_channel_whatever_else_has(
    exported: Any, tmp_path: Path, pictures: ModuleType, per_channel: bool, reduce_range: bool
) -> None:
    """Codes times scales are the nearest values of `grids.symmetric`; depthwise convolutions are among them."""
    _, file = exported["convnext"]
    target = tmp_path / "model.onnx"
    quantize_static_int8(file, target, batches_of(pictures), per_channel=per_channel, reduce_range=reduce_range)
    made = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph_of(target).initializer}
    convolutions = [layer for layer in layers(graph_of(file)) if layer.operator == "Conv"]
    assert len(convolutions) == 5
    for layer in convolutions:
        codes, scale = made[f"{layer.weight}_quantized"], made[f"{layer.weight}_scale"]
        assert scale.shape == (len(codes),)
        own = torch.from_numpy(weight(graph_of(file), layer).copy())
        largest = grids.INT8_REDUCED if reduce_range else grids.INT8
        expected = grids.symmetric(own, largest, by_row=True)
        np.testing.assert_allclose(codes.reshape(own.shape) * scale[:, None], expected.numpy(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_static_eight_bits_and_half_precision_stay_close_and_get_smaller(
    exported: Any, pictures: ModuleType, tmp_path: Path, family: str
) -> None:
    _, file = exported[family]
    batches = batches_of(pictures)
    given = outputs(file, batches)
    static, half = tmp_path / "static.onnx", tmp_path / "half.onnx"
    quantize_static_int8(file, static, batches, per_channel=True, reduce_range=True)
    convert_float16(file, half)
    assert not layers(graph_of(static)), "no weight is left in float"
    assert 0 < movement(given, outputs(static, batches)) < 0.02
    assert 0 < movement(given, outputs(half, batches)) < 1e-4
    assert static.stat().st_size < 0.7 * file.stat().st_size > half.stat().st_size


def test_a_convolution_stays_in_float_by_name(exported: Any, pictures: ModuleType, tmp_path: Path) -> None:
    _, file = exported["resnet"]
    first, target = "resnet.embedder.embedder.convolution", tmp_path / "model.onnx"
    batches = batches_of(pictures)
    quantize_static_int8(file, target, batches, per_channel=False, reduce_range=True, keep_float=[first])
    assert [layer.name for layer in layers(graph_of(target))] == [first]
    assert movement(outputs(file, batches), outputs(target, batches)) < 0.02


@pytest.mark.parametrize("family", ["convnext", "vit"])
def test_moments_of_what_layers_read_count_every_place_where_there_is_no_mask(
    exported: Any, pictures: ModuleType, family: str
) -> None:
    """Against torch; a head reads one row a picture, and needs no more of them than it has inputs."""
    model, file = exported[family]
    wanted = [layer for layer in layers(graph_of(file)) if layer.operator != "Conv"]
    batches = batches_of(pictures)
    rows: dict[str, Any] = {}
    modules = {layer.name: model.get_submodule(layer.name) for layer in wanted}
    with torch.no_grad(), inputs_given_to(modules, rows.__setitem__):
        model(pixel_values=torch.from_numpy(batches[0]["pixel_values"]))
    found = input_moments(file, wanted, batches)
    for name, read in rows.items():
        flat = read.reshape(-1, read.shape[-1]).double()
        np.testing.assert_allclose(found[name], (flat.T @ flat).numpy(), atol=1e-3, rtol=1e-3)
    assert found.keys() == rows.keys()


# --- schemes without a form for convolutions --------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["dynamic_int8", "int4"])
def test_a_convolutional_net_is_refused_where_little_but_its_head_would_be_quantized(
    jobs: ModuleType, exported: Any, tmp_path: Path, scheme: str
) -> None:
    model, file = exported["resnet"]
    says = f"{scheme} has no form for convolutions: 11 of 12 layers, 100% of the weights, stay in floating point"
    with pytest.raises(StageError, match=says) as caught:
        jobs.run_stage(tmp_path, "quantize", {"model": "m", "scheme": scheme}, model=jobs.artifact(file.parent, "onnx"))
    assert caught.value.where == f"stages.{tmp_path.name}.scheme" and "static_int8" in str(caught.value)
    with pytest.raises(StageError, match=says), fake_quantized(model, scheme, GridParams(), where="x"):  # type: ignore[arg-type]
        pass


@pytest.mark.parametrize("scheme", ["dynamic_int8", "int4"])
def test_what_stays_in_float_is_said_where_most_of_a_model_is_matrices(
    jobs: ModuleType, exported: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, scheme: str
) -> None:
    _, file = exported["vit"]
    first = "vit.embeddings.patch_embeddings.projection"
    found = jobs.run_stage(
        tmp_path, "quantize", {"model": "m", "scheme": scheme}, model=jobs.artifact(file.parent, "onnx")
    )
    described = {layer["layer"]: layer for layer in json.loads((tmp_path / "records/layers.json").read_text())}
    assert described[first]["why"] == f"{scheme} has no form for Conv"
    assert [name for name, layer in described.items() if not layer["quantized"]] == [first]
    assert found["layers_kept"] == 1 and found["layers_quantized"] == len(described) - 1
    assert [layer.name for layer in layers(graph_of(tmp_path / "output/model.onnx"))] == [first]
    assert first in caplog.text and f"{scheme} has no form for convolutions" in caplog.text


def test_half_precision_takes_convolutions(jobs: ModuleType, exported: Any, tmp_path: Path) -> None:
    source = jobs.artifact(exported["resnet"][1].parent, "onnx")
    found = jobs.run_stage(tmp_path, "quantize", {"model": "m", "scheme": "float16"}, model=source)
    assert found["layers_kept"] == 0 and found["size_ratio"] < 0.6


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["resnet", "convnext"])
@pytest.mark.parametrize("reduce_range", [False, True])
def test_a_net_in_training_computes_what_its_static_graph_computes(
    exported: Any, pictures: ModuleType, tmp_path: Path, family: str, reduce_range: bool
) -> None:
    """Picture by picture, calibrated on that one: whose scales are then those that training has.

    What is left is that the graph rounds sums of branches and what layers give as well.
    """
    model, file = exported[family]
    own, near = [], []
    params = GridParams(per_channel=True, reduce_range=reduce_range)
    for picture in pictures.features(6):
        batch = {"pixel_values": picture["pixel_values"][None]}
        target = tmp_path / "model.onnx"
        quantize_static_int8(file, target, [batch], per_channel=True, reduce_range=reduce_range)
        shipped = outputs(target, [batch])[0]
        with torch.no_grad():
            plain = model(pixel_values=torch.from_numpy(batch["pixel_values"])).logits.numpy()
            with fake_quantized(model, "static_int8", params, where="x"):
                learning = model(pixel_values=torch.from_numpy(batch["pixel_values"])).logits.numpy()
            again = model(pixel_values=torch.from_numpy(batch["pixel_values"])).logits.numpy()
        np.testing.assert_array_equal(plain, again)
        own.append(learning - shipped)
        near.append(plain - shipped)
    assert np.square(own).sum() < 0.75 * np.square(near).sum()


def test_rounding_before_a_batch_norm_is_rounding_after_it_is_folded(exported: Any, tmp_path: Path) -> None:
    """Weights rounded by channel in torch, times what BatchNorm multiplies, are those of the graph."""
    model, file = exported["resnet"]
    folded = {layer.name: weight(graph_of(file), layer) for layer in layers(graph_of(file))}
    for name, module in model.named_modules():
        if not isinstance(getattr(module, "convolution", None), torch.nn.Conv2d):
            continue
        norm = module.normalization
        factor = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
        rounded = grids.symmetric(module.convolution.weight.detach().flatten(1), 64, by_row=True) * factor[:, None]
        after = grids.symmetric(torch.from_numpy(folded[f"{name}.convolution"].copy()), 64, by_row=True)
        step = after.abs().amax(1, keepdim=True) / 64
        assert float(((rounded - after).abs() / step > 0.5).float().mean()) < 1e-3, "but for ties"


def test_only_the_schemes_that_have_convolutions_round_them(exported: Any) -> None:
    model, _ = exported["convnext"]
    convolutions = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)}
    for scheme, expected in {"static_int8": convolutions, "dynamic_int8": set(), "int4": set()}.items():
        with fake_quantized(model, scheme, GridParams(), where="x"):  # type: ignore[arg-type]
            changed = {name for name, module in model.named_modules() if "forward" in module.__dict__}
        assert changed & convolutions == expected and changed > expected


def test_the_gradient_passes_the_rounding_of_a_convolution_unchanged() -> None:
    """By its weight and by its input as if the other were rounded alone; one axis of places, and two, in groups."""
    for layer, shape in (
        (torch.nn.Conv1d(4, 6, 3, padding=1, groups=2), (2, 4, 7)),
        (torch.nn.Conv2d(4, 4, 3, stride=2, groups=4), (2, 4, 9, 9)),
    ):
        values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with fake_quantized(torch.nn.Sequential(layer), "static_int8", GridParams(), where="x"):  # type: ignore[arg-type]
            given = layer(values)
            given.square().sum().backward()
        own = layer.weight.detach()
        rounded = grids.symmetric(own.flatten(1), 64, by_row=True).view_as(own).requires_grad_()
        read = grids.by_example(values.detach()).requires_grad_()
        expected = layer._conv_forward(read, rounded, layer.bias.detach())
        expected.square().sum().backward()
        torch.testing.assert_close(given, expected)
        torch.testing.assert_close(layer.weight.grad, rounded.grad)
        torch.testing.assert_close(values.grad, read.grad)
        assert not torch.equal(rounded, own) and not torch.equal(read, values)
