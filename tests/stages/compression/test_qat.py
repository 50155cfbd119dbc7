"""Quantization-aware training: its grids are those that ship, its gradients pass them by, its models are plain ones."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from infra.errors import Preempted, StageError
from tasks.compression.onnx.export import export_onnx
from tasks.compression.quantization import grids
from tasks.compression.quantization.fake_quantization import fake_quantized
from tasks.compression.quantization.grid_settings import GridParams
from tasks.compression.quantization.int4 import quantized
from tasks.compression.quantization.int8 import quantize_dynamic_int8
from tasks.compression.quantization.sensitivity import movement, outputs
from tasks.models.card import ModelCard, write_card
from tasks.objective import objective
from tasks.processors.tokenizer import Tokenizer, load_tokenizer
from tasks.stages import qat
from tasks.training.loop.features import train_and_validation
from tasks.training.loop.result import TrainResult


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# --- grids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 64), (5, 40), (3, 7)], ids=["whole groups", "a ragged one", "one that is short"])
@pytest.mark.parametrize("shift", [-3.0, 0.0, 3.0], ids=["below zero", "around zero", "above zero"])
def test_four_bits_in_training_are_those_that_ship(shape: tuple[int, int], shift: float) -> None:
    weight = normal(*shape) + shift
    weight[0] = 0.0
    shipped = quantized(weight.numpy(), 32, None).dense()
    np.testing.assert_allclose(grids.in_groups(weight, 32).numpy(), shipped, atol=1e-6, rtol=0)
    assert not np.allclose(weight, shipped, atol=1e-3)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("reduce_range", [False, True])
def test_eight_bits_in_training_are_those_that_ship(tmp_path: Path, per_channel: bool, reduce_range: bool) -> None:
    """A lookup and a product in a graph of their own, quantized as models are, and made dense again."""
    table, weight = normal(9, 16), normal(5, 16) * torch.arange(5)[:, None]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="words"),
        helper.make_node("MatMul", ["rows", "weight"], ["logits"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "two layers",
        [helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, [3])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [3, 5])],
        [
            numpy_helper.from_array(table.numpy(), "table"),
            numpy_helper.from_array(np.ascontiguousarray(weight.numpy().T), "weight"),
        ],
    )
    file = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    quantize_dynamic_int8(file, file, per_channel=per_channel, reduce_range=reduce_range)
    made = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer}

    def dense(name: str) -> Any:
        codes, scale, zero = (made[f"{name}_{part}"] for part in ("quantized", "scale", "zero_point"))
        return (codes.astype(np.float32) - zero) * scale

    largest = grids.INT8_REDUCED if reduce_range else grids.INT8
    found = grids.symmetric(weight, largest, by_row=per_channel)
    np.testing.assert_allclose(found.numpy(), dense("weight").T, atol=1e-6, rtol=0)
    np.testing.assert_allclose(grids.whole(table).numpy(), dense("table"), atol=1e-6, rtol=0)


def test_the_gradient_passes_the_rounding_unchanged() -> None:
    """Of a layer's outputs, times given numbers: by its weight and by its input as if the other were rounded alone."""
    layer = torch.nn.Sequential(torch.nn.Linear(32, 4))
    values, times = normal(3, 32).requires_grad_(), normal(3, 4)
    with fake_quantized(layer, "dynamic_int8", GridParams(per_channel=True), where="x"):  # type: ignore[arg-type]
        given = layer(values)
        (given * times).sum().backward()
    weight, rows = layer[0].weight, grids.by_row(values.detach())
    near = grids.symmetric(weight.detach(), 64, by_row=True)
    torch.testing.assert_close(given, rows @ near.T + layer[0].bias)
    torch.testing.assert_close(weight.grad, times.T @ rows)
    torch.testing.assert_close(values.grad, times @ near)
    assert not torch.equal(near, weight) and not torch.equal(rows, values)


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """type -> (model, folder with its graph). gpt2: words in and out share a matrix; bert: Gemm, other embeddings."""
    found = {}
    for type, auto in {"gpt2": AutoModelForCausalLM, "bert": AutoModelForSequenceClassification}.items():
        model, folder = tiny.model(type, auto, vocabulary=tiny.VOCABULARY), tmp_path_factory.mktemp(type)
        goal = "text_classification" if type == "bert" else "causal_lm"
        export_onnx(model, objective(goal).bound(Tokenizer(None, tiny.CONTEXT)), folder / "model.onnx")
        model.config.save_pretrained(folder)
        write_card(folder, ModelCard({"name": goal}, tiny.CONTEXT))
        found[type] = model, folder
    return found


@pytest.mark.parametrize("type", ["gpt2", "bert"])
@pytest.mark.parametrize(
    "given",
    [
        {"scheme": "int4", "group_size": 16},
        {"scheme": "int4", "keep_float": ["*.1.*"]},
        {"scheme": "dynamic_int8"},
        {"scheme": "dynamic_int8", "per_channel": True, "reduce_range": False},
    ],
    ids=["int4", "int4 but a layer", "int8", "int8 by channel"],
)
def test_a_model_in_training_computes_what_its_quantized_graph_computes(
    jobs: ModuleType, tiny: ModuleType, tmp_path: Path, exported: Any, type: str, given: dict[str, Any]
) -> None:
    """Eight bits are compared on single tokens, whose scale is that of the batch."""
    model, graph = exported[type]
    jobs.run_stage(tmp_path, "quantize", {"model": "m", **given}, model=jobs.artifact(graph, "onnx"))
    longest = tiny.CONTEXT if given["scheme"] == "int4" else 1
    rows = tiny.lm_features(24, vocabulary=tiny.VOCABULARY, shortest=1, longest=longest)
    batches = [objective("causal_lm").collate([row]) for row in rows]
    batches = [{name: batch[name] for name in ("input_ids", "attention_mask")} for batch in batches]

    def logits() -> list[Any]:
        with torch.no_grad():
            found = [model(**batch).logits.numpy() for batch in batches]
        return [x[0] if x.ndim == 3 else x for x in found]

    plain = logits()
    params = GridParams.model_validate({name: value for name, value in given.items() if name != "scheme"})
    with fake_quantized(model, given["scheme"], params, where="x"):
        learning = logits()
    arrays = [{**{n: t.numpy() for n, t in b.items()}, "token_type_ids": 0 * b["input_ids"].numpy()} for b in batches]
    shipped = outputs(tmp_path / "output/model.onnx", arrays)
    assert movement(shipped, learning) < 1e-5 < 1e-4 < movement(shipped, plain)
    np.testing.assert_array_equal(np.concatenate(logits()), np.concatenate(plain))


def layer_names(model: Any) -> set[str]:
    return {name for name, module in model.named_modules() if "forward" in module.__dict__}


def test_layers_that_are_kept_and_what_is_tied_stay_as_they_are(tiny: ModuleType) -> None:
    model = tiny.model("gpt2")
    before = list(model.named_parameters())
    with fake_quantized(model, "int4", GridParams(keep_float=["lm_head", "*.0.*"]), where="x"):
        found = layer_names(model)
        assert model.lm_head.weight is model.transformer.wte.weight
    assert found == {"transformer.wte", "transformer.wpe"} | {
        f"transformer.h.1.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    assert not layer_names(model)
    assert all(a is b and n == m for (n, a), (m, b) in zip(before, model.named_parameters(), strict=True))


@pytest.mark.parametrize(
    ("patterns", "says"), [(["head"], "no layer is called 'head'"), (["*"], "all 16 layers stay in floating point")]
)
def test_patterns_that_leave_nothing_or_mean_nothing_are_refused(
    tiny: ModuleType, patterns: list[str], says: str
) -> None:
    params = GridParams(keep_float=patterns)
    with pytest.raises(StageError, match=says) as caught, fake_quantized(tiny.model(), "int4", params, where="s"):
        pass
    assert caught.value.where == "s.keep_float"


# --- the stage --------------------------------------------------------------------------------------------------------

STEPS = {"max_steps": 6, "global_batch_size": 8, "learning_rate": 5e-3}


@pytest.fixture(scope="module")
def inputs(jobs: ModuleType, tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A llama that was trained for nothing, and packed functions of the standard library."""
    made = tiny.write_inputs(tmp_path_factory.mktemp("aware"))
    tiny.model("llama", vocabulary=tiny.VOCABULARY).save_pretrained(made / "model")
    for file in (made / "tokenizer").iterdir():
        (made / "model" / file.name).write_bytes(file.read_bytes())
    write_card(made / "model", ModelCard({"name": "causal_lm"}, tiny.CONTEXT))
    return {"model": jobs.artifact(made / "model", "model"), "data": jobs.artifact(made / "tokens", "tokens")}


def trained(jobs: ModuleType, place: Path, inputs: dict[str, Any], given: dict[str, Any], **job: Any) -> Any:
    """(weights by name, metrics)."""
    params = qat.Params.model_validate({"model": "m", "data": "d", "scheme": "int4", **STEPS, **given})
    wanted = inputs | ({"teacher": inputs["model"]} if params.teacher else {})
    made = jobs.make_job(place, params, wanted, **job)
    metrics = qat.STAGE.run(made)
    return load_file(made.output / "model.safetensors"), metrics


def far(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def four_bit_loss(folder: Path, data: Any, scheme: str | None = "int4") -> float:
    """Validation loss of the model in `folder`, rounded to four bits with a whole row to a group; None: as it is."""
    model, goal = AutoModelForCausalLM.from_pretrained(folder), objective("causal_lm")
    features = train_and_validation(goal.bound(Tokenizer(load_tokenizer(folder), 32)), data).validation
    params = GridParams(group_size=64)
    with fake_quantized(model, "int4", params, where="x") if scheme else nullcontext():
        return float(TrainResult.untrained(model, goal, features).validation["loss"])


def test_training_for_the_grid_wins_back_most_of_what_rounding_costs(
    jobs: ModuleType, inputs: dict[str, Any], tmp_path: Path
) -> None:
    """One input of each layer counts thirty times as much by its weight and a thirtieth by its norm.

    In floating point that changes nothing; in four bits little is left of the other weights in the row. The same steps
    in floating point are the control.
    """
    steps = {"model": "m", "data": "d", "global_batch_size": 8}
    learning = {**steps, "objective": "causal_lm", "max_steps": 60, "learning_rate": 2e-2}
    start = jobs.run_stage(tmp_path / "start", "finetune", learning, **inputs)["validation_loss"]
    folder = tmp_path / "start/output"
    model = AutoModelForCausalLM.from_pretrained(folder)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, readers in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            norm.weight.data[5] /= 30
            for reader in readers:
                reader.weight.data[:, 5] *= 30
    model.save_pretrained(folder)
    source = {**inputs, "model": jobs.artifact(folder, "model")}
    more = {**steps, "max_steps": 40, "learning_rate": 5e-3}
    jobs.run_stage(tmp_path / "control", "finetune", {**more, "objective": "causal_lm"}, **source)
    aware = jobs.run_stage(tmp_path / "aware", "qat", {**more, "scheme": "int4", "group_size": 64}, **source)
    rounded, control, learned = (
        four_bit_loss(tmp_path / name / "output", inputs["data"]) for name in ("start", "control", "aware")
    )
    assert four_bit_loss(folder, inputs["data"], None) == pytest.approx(start, abs=1e-4)
    assert aware["validation_loss"] == pytest.approx(learned, abs=1e-5)
    assert learned - start < 0.5 * (rounded - start)
    assert learned < control


def test_a_resumed_training_ends_bit_for_bit_where_the_undisturbed_one_does(
    jobs: ModuleType, inputs: dict[str, Any], tmp_path: Path
) -> None:
    given = {"scheme": "dynamic_int8", "teacher": "m", "alpha": 0.5}
    straight, _ = trained(jobs, tmp_path / "straight", inputs, given)
    questions = count()
    stop = {"stop_requested": lambda: next(questions) >= 3, "store": tmp_path / "store"}
    with pytest.raises(Preempted):
        trained(jobs, tmp_path / "stopped", inputs, given, **stop)
    resumed, _ = trained(jobs, tmp_path / "resumed", inputs, given, store=tmp_path / "store")
    assert far(straight, resumed) == 0


@pytest.mark.parametrize("scheme", ["int4", "dynamic_int8"])
@pytest.mark.parametrize(
    "execution",
    [
        {"per_device_train_batch_size": 2},
        {"zero_stage": 1, "offload_optimizer": True},
        {"zero_stage": 2, "offload_optimizer": True},
        {"zero_stage": 3, "offload_optimizer": True},
        {"activation_checkpointing": True},
    ],
    ids=lambda execution: "-".join(map(str, execution)),
)
def test_how_it_is_executed_changes_nothing(
    jobs: ModuleType, inputs: dict[str, Any], tmp_path: Path, scheme: str, execution: dict[str, Any]
) -> None:
    """Catches scales that depend on who shares a batch, and weights that are not there when they are rounded."""
    plain, _ = trained(jobs, tmp_path / "plain", inputs, {"scheme": scheme})
    other, _ = trained(jobs, tmp_path / "other", inputs, {"scheme": scheme}, execution=execution)
    start = load_file(inputs["model"].path / "model.safetensors")
    assert far(plain, other) < 0.02 * far(plain, start)


def test_a_teacher_has_its_share(jobs: ModuleType, inputs: dict[str, Any], tmp_path: Path) -> None:
    alone, unheard, heard = (
        trained(jobs, tmp_path / name, inputs, given)[0]
        for name, given in {"a": {}, "b": {"teacher": "m", "alpha": 0.0}, "c": {"teacher": "m", "alpha": 1.0}}.items()
    )
    assert far(alone, unheard) == 0 < far(alone, heard)


def test_groups_are_for_four_bits() -> None:
    with pytest.raises(ValueError, match="`group_size` is for `scheme: int4`, not dynamic_int8"):
        qat.Params.model_validate({"model": "m", "data": "d", "scheme": "dynamic_int8", "group_size": 64, **STEPS})
