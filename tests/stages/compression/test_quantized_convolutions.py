"""Convolutions in a graph: named, folded with their BatchNorm, in eight bits by channel, and never passed over silently."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from tasks.compression.onnx.export import export_onnx
from tasks.compression.onnx.layers import input_moments, layers, weight
from tasks.compression.pruning.calibration import inputs_given_to
from tasks.compression.quantization import grids
from tasks.compression.quantization.float16 import convert_float16
from tasks.compression.quantization.int8 import quantize_static_int8
from tasks.compression.quantization.sensitivity import movement, outputs

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
