"""Layers of a graph by name, four bits against arithmetic and ONNX Runtime, GPTQ against rounding, which layers stay."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from infra.errors import StageError
from tasks.compression.onnx.export import export_onnx
from tasks.compression.onnx.layers import fold_transposes, input_moments, layers, matching, weight
from tasks.compression.pruning.calibration import calibration_batches, second_moments
from tasks.compression.quantization.int4 import quantize_int4, quantized
from tasks.compression.quantization.sensitivity import movement, outputs
from tasks.models.card import ModelCard, read_card, write_card
from tasks.models.runtime import onnx_parameters
from tasks.models.structure.parts import matrices
from tasks.objective import objective
from tasks.processors.tokenizer import Tokenizer, load_tokenizer
from tasks.stages import quantize

AUTO = {"llama": AutoModelForCausalLM, "gpt2": AutoModelForCausalLM, "bert": AutoModelForSequenceClassification}
CONTEXT = 32
NAMES = {"llama": "causal_lm", "gpt2": "causal_lm", "bert": "text_classification"}


@pytest.fixture(scope="module")
def exported(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """type -> (torch model, folder with its graph and a card)."""
    found = {}
    for type, auto in AUTO.items():
        folder = tmp_path_factory.mktemp(type)
        model = tiny.model(type, auto, vocabulary=tiny.VOCABULARY)
        export_onnx(model, objective(NAMES[type]).bound(Tokenizer(None, tiny.CONTEXT)), folder / "model.onnx")
        graph = onnx.load(folder / "model.onnx")
        assert bool(fold_transposes(graph)) == (type == "gpt2"), "words in and out of gpt2 share a matrix"
        onnx.save(graph, folder / "model.onnx")
        model.config.save_pretrained(folder)
        write_card(folder, ModelCard({"name": NAMES[type]}, tiny.CONTEXT))
        found[type] = model, folder
    return found


def graph_of(folder: Path) -> onnx.GraphProto:
    return onnx.load(folder / "model.onnx").graph


def batches_of(tiny: ModuleType, **given: Any) -> list[dict[str, Any]]:
    rows = tiny.lm_features(24, vocabulary=tiny.VOCABULARY, longest=tiny.CONTEXT)
    return calibration_batches(objective("causal_lm"), rows, 20)


def as_arrays(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: tensor.numpy() for name, tensor in batch.items()} for batch in batches]


# --- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", AUTO)
def test_nodes_are_called_what_the_model_calls_its_layers(exported: Any, type: str) -> None:
    """Also where two layers share one matrix: gpt2's words in and out."""
    model, folder = exported[type]
    kinds = torch.nn.Linear | torch.nn.Embedding | Conv1D
    expected = {name for name, module in model.named_modules() if isinstance(module, kinds)}
    found = layers(graph_of(folder))
    assert {layer.name for layer in found} == expected
    assert len(found) == len(expected)
    for layer in found:
        module = model.get_submodule(layer.name)
        own = module.weight.detach().numpy()
        np.testing.assert_array_equal(weight(graph_of(folder), layer), own.T if isinstance(module, Conv1D) else own)


def test_a_pattern_without_a_layer_is_an_error_that_names_some() -> None:
    names = ["encoder.0.query", "encoder.0.key", "head"]
    assert matching(names, ["head", "*.0.*"], where="x") == names
    with pytest.raises(StageError, match="no layer is called '\\*classifier'") as caught:
        matching(names, ["head", "*classifier"], where="stages.int8.keep_float")
    assert "encoder.0.query" in str(caught.value)


@pytest.mark.parametrize("type", AUTO)
def test_what_layers_read_in_the_graph_is_what_they_read_in_torch(exported: Any, tiny: ModuleType, type: str) -> None:
    model, folder = exported[type]
    batches = batches_of(tiny)
    modules = {name: module for layer in matrices(model) for name, module in layer.items()}
    expected = second_moments(model, modules, batches, full=True)
    wanted = [layer for layer in layers(graph_of(folder)) if layer.name in modules]
    found = input_moments(folder / "model.onnx", wanted, as_arrays(batches))
    assert found.keys() == expected.keys()
    for name, moments in found.items():
        np.testing.assert_allclose(moments, expected[name].numpy(), atol=1e-2, rtol=1e-3)


# --- four bits --------------------------------------------------------------------------------------------------------

MATRICES = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 70)), elements=st.floats(-8, 8, width=16)
)


@given(MATRICES, st.sampled_from([16, 32]))
@settings(max_examples=60)
def test_the_nearest_value_is_at_most_half_a_step_away_and_zero_stays_zero(matrix: Any, group: int) -> None:
    found = quantized(matrix, group, None)
    steps = np.repeat(found.scales, group, 1)[:, : matrix.shape[1]]
    # The zero point is a whole number too, so an end of the range may be missed by half a step more.
    assert (np.abs(found.dense() - matrix) <= steps * 1.001 + 1e-6).all()
    assert (found.dense()[matrix == 0] == 0).all()
    assert found.codes.max() <= 15 and found.zero_points.max() <= 15


def test_a_group_of_sixteen_even_values_is_kept_exactly() -> None:
    matrix = np.arange(-5, 11, dtype=np.float32)[None] * 0.25
    found = quantized(matrix, 16, None)
    np.testing.assert_array_equal(found.dense(), matrix)
    assert found.scales.tolist() == [[0.25]] and found.zero_points.tolist() == [[5]]


def test_inputs_that_have_nothing_in_common_leave_nothing_to_make_up_for() -> None:
    matrix = np.random.default_rng(0).normal(size=(6, 48)).astype(np.float32)
    plain = quantized(matrix, 16, None)
    apart = quantized(matrix, 16, np.diag(np.random.default_rng(1).uniform(1, 2, 48)))
    np.testing.assert_array_equal(plain.codes, apart.codes)


@pytest.mark.parametrize("group", [16, 64])
@pytest.mark.parametrize("type", AUTO)
def test_the_runtime_computes_with_the_values_the_codes_stand_for(
    exported: Any, tiny: ModuleType, tmp_path: Path, type: str, group: int
) -> None:
    """Torch with the dense values in place of the weights is the reference; widths of 32 and 64 and a ragged group."""
    model, folder = exported[type]
    graph = graph_of(folder)
    chosen = [layer for layer in layers(graph) if layer.operator != "Gather"]
    quantize_int4(folder / "model.onnx", tmp_path / "model.onnx", chosen, group)
    nodes = [node.op_type for node in graph_of(tmp_path).node]
    assert nodes.count("MatMulNBits") == len(chosen) and "Gemm" not in nodes
    assert onnx_parameters(tmp_path / "model.onnx") == onnx_parameters(folder / "model.onnx"), "as many, in fewer bits"
    copy = type_of(model)
    for layer in chosen:
        dense = torch.from_numpy(quantized(weight(graph, layer), group, None).dense())
        module = copy.get_submodule(layer.name)
        # Words in and out share a matrix, of which the graph quantizes the copy that goes out.
        module.weight = torch.nn.Parameter(dense.T.contiguous() if isinstance(module, Conv1D) else dense)
    batches = batches_of(tiny)
    for batch, logits in zip(batches, outputs(tmp_path / "model.onnx", as_arrays(batches)), strict=True):
        with torch.no_grad():
            expected = copy(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.numpy()
        expected = expected[batch["attention_mask"].numpy() == 1] if expected.ndim == 3 else expected
        np.testing.assert_allclose(logits, expected, atol=2e-4)


def type_of(model: Any) -> Any:
    again = type(model)(model.config).train(False)
    again.load_state_dict(model.state_dict())
    return again


def test_rounding_is_as_good_as_the_runtimes_own(exported: Any, tiny: ModuleType, tmp_path: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    _, folder = exported["llama"]
    theirs = MatMulNBitsQuantizer(onnx.load(folder / "model.onnx"), block_size=32, is_symmetric=False)
    theirs.process()
    theirs.model.save_model_to_file(str(tmp_path / "theirs.onnx"))
    chosen = [layer for layer in layers(graph_of(folder)) if layer.operator != "Gather"]
    quantize_int4(folder / "model.onnx", tmp_path / "model.onnx", chosen, 32)
    batches = as_arrays(batches_of(tiny))
    dense = outputs(folder / "model.onnx", batches)
    own, other = (movement(dense, outputs(tmp_path / name, batches)) for name in ("model.onnx", "theirs.onnx"))
    assert 0 < own < 1.1 * other


def test_gptq_leaves_less_error_where_inputs_go_together() -> None:
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(400, 12)) @ draw.normal(size=(12, 64)) + 0.1 * draw.normal(size=(400, 64))
    matrix = draw.normal(size=(16, 64)).astype(np.float32)
    moments = inputs.T @ inputs

    def error(found: Any) -> float:
        change = found.dense() - matrix
        return float((change @ moments * change).sum())

    assert error(quantized(matrix, 32, moments)) < 0.5 * error(quantized(matrix, 32, None))


# --- the stage --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(exported: Any, tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tiny.write_inputs(tmp_path_factory.mktemp("quantizing"))
    for _, folder in exported.values():
        for file in (made / "tokenizer").iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    return made


def run(jobs: ModuleType, exported: Any, inputs: Path, place: Path, type: str = "llama", **given: Any) -> Any:
    params = quantize.Params.model_validate({"model": "m", **given})
    sources = {"model": jobs.artifact(exported[type][1], "onnx")}
    if params.data is not None:
        sources["data"] = jobs.artifact(inputs / "tokens", "tokens")
    job = jobs.make_job(place, params, sources)
    job.metrics = quantize.STAGE.run(job)
    return job


@pytest.mark.parametrize("type", ["llama", "gpt2"])
def test_half_precision_halves_every_weight_and_decides_the_same(
    jobs: ModuleType, exported: Any, inputs: Path, tiny: ModuleType, tmp_path: Path, type: str
) -> None:
    """Also where words in and out share a matrix, which stays one."""
    model, folder = exported[type][0], tmp_path / "plain"
    shutil.copytree(exported[type][1], folder)
    export_onnx(model, objective("causal_lm").bound(Tokenizer(None, tiny.CONTEXT)), folder / "model.onnx")
    jobs_of = [
        run(
            jobs,
            {type: (model, folder)},
            inputs,
            tmp_path / place,
            type,
            scheme="float16",
            data="d",
            min_agreement=0.98,
        )
        for place in "ab"
    ]
    job, again = jobs_of
    assert (job.output / "model.onnx").read_bytes() == (again.output / "model.onnx").read_bytes()
    before, after = (weights_of(place) for place in (folder, job.output))
    assert set(after.values()) == {"float16"} and after.keys() == before.keys() and set(before.values()) == {"float32"}
    assert onnx_parameters(job.output / "model.onnx") == onnx_parameters(folder / "model.onnx")
    assert job.metrics["size_ratio"] < 0.75, "the graph's own text is most of what is left of so small a model"
    assert 0 < job.metrics["max_abs_diff"] < 0.02 and job.metrics["agreement"] >= 0.98
    assert read_card(job.output).quantization == "float16"


def weights_of(folder: Path) -> dict[str, str]:
    """Number format of each weight of more than one number."""
    graph = graph_of(folder)
    return {
        tensor.name: onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).name
        for tensor in graph.initializer
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16) and np.prod(tensor.dims) > 1
    }


def test_layers_stay_whole_in_half_precision_and_a_weight_that_has_no_half_is_refused(
    jobs: ModuleType, exported: Any, inputs: Path, tmp_path: Path
) -> None:
    job = run(jobs, exported, inputs, tmp_path / "a", scheme="float16", keep_float=["lm_head"])
    assert [layer.name for layer in layers(graph_of(job.output))] == ["lm_head"]
    large = onnx.load(exported["llama"][1] / "model.onnx")
    (head,) = [layer for layer in layers(large.graph) if layer.name == "lm_head"]
    (tensor,) = [tensor for tensor in large.graph.initializer if tensor.name == head.weight]
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[3, 3] = -1e5
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    folder = Path(shutil.copytree(exported["llama"][1], tmp_path / "large"))
    onnx.save(large, folder / "model.onnx")
    with pytest.raises(
        StageError, match=f"weight '{re.escape(head.weight)}' holds 100000, and half precision ends at 65504"
    ):
        run(jobs, {"llama": (None, folder)}, inputs, tmp_path / "b", scheme="float16")


def said(job: Any) -> dict[str, Any]:
    return {layer["layer"]: layer for layer in json.loads((job.records / "layers.json").read_text())}


@pytest.mark.parametrize(
    "given",
    [
        {"scheme": "static_int8", "data": "d"},
        {"scheme": "int4"},
        {"scheme": "int4", "method": "gptq", "data": "d", "group_size": 16},
    ],
    ids=["static", "int4", "gptq"],
)
def test_each_scheme_is_smaller_close_and_the_same_every_time(
    jobs: ModuleType, exported: Any, inputs: Path, tiny: ModuleType, tmp_path: Path, given: dict[str, Any]
) -> None:
    job = run(jobs, exported, inputs, tmp_path / "a", **given)
    again = run(jobs, exported, inputs, tmp_path / "b", **given)
    assert (job.output / "model.onnx").read_bytes() == (again.output / "model.onnx").read_bytes()
    assert job.metrics["size_ratio"] < 0.8 and job.metrics["layers_kept"] == 0
    assert read_card(job.output).quantization == given["scheme"]
    batches = as_arrays(batches_of(tiny))
    dense = outputs(exported["llama"][1] / "model.onnx", batches)
    assert 0 < movement(dense, outputs(job.output / "model.onnx", batches)) < 0.1


def test_layers_stay_in_float_by_name(jobs: ModuleType, exported: Any, inputs: Path, tmp_path: Path) -> None:
    job = run(jobs, exported, inputs, tmp_path, keep_float=["lm_head", "*.layers.1.*"])
    kept = {name for name, layer in said(job).items() if not layer["quantized"]}
    assert "lm_head" in kept and len(kept) == 8 == job.metrics["layers_kept"]
    floats = {layer.name for layer in layers(graph_of(job.output))}
    assert floats == kept, "those, and no others, still hold a matrix of floats"


@pytest.mark.parametrize("scheme", ["dynamic_int8", "int4"])
def test_the_layers_that_move_the_outputs_most_stay_in_float(
    jobs: ModuleType, inputs: Path, tmp_path: Path, exported: Any, scheme: str
) -> None:
    job = run(jobs, exported, inputs, tmp_path, scheme=scheme, data="d", keep_sensitive=3, keep_float=["lm_head"])
    measured = {name: layer["movement"] for name, layer in said(job).items() if "movement" in layer}
    assert measured.keys() == said(job).keys() - {"lm_head"}
    kept = {name for name, layer in said(job).items() if not layer["quantized"]}
    assert kept == {"lm_head", *sorted(measured, key=measured.__getitem__)[-3:]}


def test_a_layers_movement_is_that_of_the_model_with_this_layer_rounded(
    jobs: ModuleType, inputs: Path, tmp_path: Path, exported: Any
) -> None:
    """Against torch, with the rounded weight put into the model by hand."""
    model, folder = exported["llama"]
    job = run(jobs, exported, inputs, tmp_path, scheme="int4", data="d", keep_sensitive=1, samples=16)
    tokens = (
        objective("causal_lm")
        .bound(Tokenizer(load_tokenizer(folder), CONTEXT))
        .examples(jobs.artifact(inputs / "tokens", "tokens"), "train")
    )
    batches = calibration_batches(objective("causal_lm").bound(config=model.config), tokens, 16)

    def logits(network: Any) -> list[Any]:
        with torch.no_grad():
            found = [network(input_ids=b["input_ids"], attention_mask=b["attention_mask"]).logits for b in batches]
        return [x[b["attention_mask"] == 1].numpy() for x, b in zip(found, batches, strict=True)]

    for name in ("lm_head", "model.layers.0.self_attn.v_proj", "model.layers.1.mlp.down_proj"):
        copy = type_of(model)
        module = copy.get_submodule(name)
        dense = quantized(module.weight.detach().numpy(), 32, None).dense()
        module.weight = torch.nn.Parameter(torch.from_numpy(dense))
        assert said(job)[name]["movement"] == pytest.approx(movement(logits(model), logits(copy)), rel=0.02), name


@pytest.mark.parametrize("per_channel", [False, True])
def test_words_that_come_out_are_quantized_where_they_share_their_matrix_with_those_that_go_in(
    jobs: ModuleType, tiny: ModuleType, inputs: Path, tmp_path: Path, exported: Any, per_channel: bool
) -> None:
    """One table for both, but where each row has a scale of its own, which a lookup cannot have."""
    model, folder = exported["gpt2"][0], tmp_path / "tied"
    shutil.copytree(exported["gpt2"][1], folder)
    export_onnx(model, objective("causal_lm").bound(Tokenizer(None, tiny.CONTEXT)), folder / "model.onnx")
    job = run(jobs, {"llama": (model, folder)}, inputs, tmp_path, per_channel=per_channel)
    graph = graph_of(job.output)
    assert not [tensor.name for tensor in graph.initializer if tensor.data_type == 1 and len(tensor.dims) == 2]
    assert "lm_head" in said(job) and "transformer.wte" in said(job)
    tables = [tensor for tensor in graph.initializer if sorted(tensor.dims) == [32, tiny.VOCABULARY]]
    assert len(tables) == 1 + per_channel
    assert "MatMulInteger" in [node.op_type for node in graph.node if "lm_head" in node.name]
    batches = as_arrays(batches_of(tiny))
    dense = outputs(folder / "model.onnx", batches)
    assert 0 < movement(dense, outputs(job.output / "model.onnx", batches)) < 0.02


def test_a_model_with_nothing_left_to_quantize_is_refused(
    jobs: ModuleType, exported: Any, inputs: Path, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match="all 16 layers stay in floating point"):
        run(jobs, exported, inputs, tmp_path, keep_float=["*"])


def test_a_head_that_reads_a_row_a_text_needs_no_more_texts_than_others(exported: Any, tiny: ModuleType) -> None:
    folder = exported["bert"][1]
    wanted = [layer for layer in layers(graph_of(folder)) if layer.name == "classifier"]
    (moments,) = input_moments(folder / "model.onnx", wanted, as_arrays(batches_of(tiny))).values()
    assert moments.shape == (32, 32) and 0 < np.linalg.matrix_rank(moments) <= 20, "of twenty texts"


def test_too_few_examples_to_calibrate_on_are_refused(
    jobs: ModuleType, exported: Any, inputs: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        StageError, match=r"32 rows of inputs are too few to see how the 64 inputs of model.layers.0.mlp.down_p"
    ):
        run(jobs, exported, inputs, tmp_path, scheme="int4", method="gptq", data="d", samples=1)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"method": "gptq", "data": "d"}, "are for `scheme: int4`"),
        ({"group_size": 64}, "are for `scheme: int4`"),
        ({"scheme": "static_int8"}, "`static_int8` is measured on examples: give `data`"),
        ({"keep_sensitive": 2}, "`keep_sensitive` is measured on examples"),
        ({"min_agreement": 0.9}, "`min_agreement` is measured on examples"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(params: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        quantize.Params.model_validate({"model": "m", **params})
