"""export and quantize: the graph computes what the model computes, is refused where not, and is the same every time."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from infra.errors import StageError
from tasks.compression.onnx.export import export_onnx, largest_difference
from tasks.models.card import ModelCard, read_card, write_card
from tasks.models.files import shipped_bytes
from tasks.models.runtime import OnnxRuntime, TorchRuntime, onnx_parameters
from tasks.objective import objective
from tasks.processors.token_probes import random_batches
from tasks.processors.tokenizer import Tokenizer
from tasks.stages import export, quantize

CLASSIFIER = ("text_classification", AutoModelForTokenClassification)
GENERATOR = ("causal_lm", AutoModelForCausalLM)


def save(tiny: ModuleType, folder: Path, type: str, kind: Any, **fields: Any) -> Path:
    name, auto = kind
    model = tiny.model(type, auto, **fields)
    # Fresh norms and biases are ones and zeros, which an optimiser may fold away; trained ones are not.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    tiny.word_tokenizer(["a", "word"]).save_pretrained(folder)
    labels = [f"c{i}" for i in range(model.config.num_labels)] if auto is AutoModelForTokenClassification else None
    write_card(folder, ModelCard({"name": name}, 48, labels))
    return folder


def run(jobs: ModuleType, folder: Path, stage: Any, source: Path, type: str, **params: Any) -> Any:
    job = jobs.make_job(folder, stage.Params(model="m", **params), {"model": jobs.artifact(source, type)})
    job.metrics = stage.STAGE.run(job)
    return job


@pytest.fixture(scope="session")
def parent(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny, tmp_path_factory.mktemp("parent"), "llama", CLASSIFIER, num_labels=5)


@pytest.fixture(scope="session")
def exported(jobs: ModuleType, parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(jobs, tmp_path_factory.mktemp("exported"), export, parent, "model")


def test_export_equals_its_parent_on_shapes_it_was_not_traced_with(exported: Any, parent: Path) -> None:
    """An independent comparison: sizes of batch and sequence that neither the trace nor the stage's proof used."""
    torch_runtime = TorchRuntime(parent, objective("text_classification"))
    onnx_runtime = OnnxRuntime(exported.output, threads=1)
    shapes = [(1, 2), (3, 48), (7, 11), (17, 5)]
    for batch in random_batches(torch_runtime.model.config, onnx_runtime.names, 48, seed=9, shapes=shapes):
        expected, given = (r.outputs(batch)["logits"] for r in (torch_runtime, onnx_runtime))
        assert given.shape == expected.shape == (*batch["input_ids"].shape, 5)
        real = batch["attention_mask"] == 1  # what stands at a padding token means nothing, and differs
        np.testing.assert_allclose(given[real], expected[real], atol=1e-5)
    assert exported.metrics["max_abs_diff"] < 1e-5
    assert onnx_parameters(exported.output / "model.onnx") == pytest.approx(torch_runtime.parameters, rel=0.01)


def test_payload_is_complete_and_names_no_place(exported: Any, parent: Path) -> None:
    names = {path.name for path in exported.output.iterdir()}
    assert names == {"model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json", "forgeline.json"}
    card = read_card(exported.output)
    assert card == replace(read_card(parent), format="onnx")
    graph = (exported.output / "model.onnx").read_bytes()
    assert str(Path(__file__).parents[3]).encode() not in graph
    assert b"site-packages" not in graph
    assert b"batch" in graph and b"sequence" in graph


@pytest.mark.parametrize("type", ["llama", "gpt2"])
def test_language_models_are_exported_with_a_row_a_token(tiny: ModuleType, tmp_path: Path, type: str) -> None:
    model = tiny.model(type, AutoModelForCausalLM, layers=1)
    export_onnx(model, objective("causal_lm").bound(Tokenizer(None, 48)), tmp_path / "model.onnx")
    assert largest_difference(model, objective("causal_lm").bound(Tokenizer(None, 48)), tmp_path / "model.onnx") < 1e-5


class Changed(torch.nn.Module):
    """A layer, and then something that has no place in a graph."""

    def __init__(self, layer: torch.nn.Module, change: Any) -> None:
        super().__init__()
        self.layer, self.change = layer, change

    def forward(self, *given: Any) -> Any:
        return self.change(self.layer(*given))


REFUSED = [
    (torch.special.i0e, r"no operator for `\S*i0e\S*`, which LlamaForCausalLM uses in `model.layers.1.mlp.up_proj`"),
    (lambda x: x if float(x.detach().sum()) > 0 else -x, r"cannot be captured .* in `model.layers.1.mlp.up_proj`: "),
]


@pytest.mark.parametrize(("change", "says"), REFUSED, ids=["operator", "branch"])
def test_what_has_no_place_in_a_graph_is_named_with_its_module(
    tiny: ModuleType, tmp_path: Path, change: Any, says: str
) -> None:
    model = tiny.model("llama", AutoModelForCausalLM)
    mlp = model.model.layers[1].mlp
    mlp.up_proj = Changed(mlp.up_proj, change)
    with pytest.raises(StageError, match=says):
        export_onnx(model, objective("causal_lm").bound(Tokenizer(None, 48)), tmp_path / "model.onnx")


def test_another_models_graph_is_refused(exported: Any, tiny: ModuleType, tmp_path: Path) -> None:
    other = save(tiny, tmp_path, "llama", CLASSIFIER, num_labels=5, initializer_range=0.2)
    model = AutoModelForTokenClassification.from_pretrained(other)
    assert (
        largest_difference(
            model, objective("text_classification").bound(Tokenizer(None, 48)), exported.output / "model.onnx"
        )
        > 1e-3
    )


def test_tolerance_that_is_not_met_is_refused_and_equal_models_give_equal_bytes(
    exported: Any, parent: Path, jobs: ModuleType, tmp_path: Path
) -> None:
    moved = shutil.copytree(parent, tmp_path / "elsewhere")
    with pytest.raises(StageError, match=r"the export differs from the model by .*, more than 1e-12"):
        run(jobs, tmp_path, export, moved, "model", tolerance=1e-12)
    proof = json.loads((tmp_path / "records/fidelity.json").read_text())
    assert 1e-12 < proof["max_abs_diff"] < 1e-4
    assert (tmp_path / "output/model.onnx").read_bytes() == (exported.output / "model.onnx").read_bytes()


def test_random_batches_are_padded_on_both_sides(tiny: ModuleType) -> None:
    config = tiny.model(layers=1).config
    batches = list(random_batches(config, ("input_ids", "attention_mask"), 48, seed=0))
    assert {b["input_ids"].shape[1] for b in batches} >= {1, 48}
    for batch in batches:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        assert ((ids == config.pad_token_id) == (mask == 0)).all()
        assert mask.sum(1).min() >= 1
    ragged = [b["attention_mask"] for b in batches if b["attention_mask"].min() == 0]
    assert any((m[:, 0] == 0).any() for m in ragged) and any((m[:, -1] == 0).any() for m in ragged)


# Without VNNI, sums of two products of eight bits overflow where weights use their whole range, as they do per channel.
@pytest.mark.parametrize("options", [{}, {"per_channel": True, "reduce_range": True}, {"reduce_range": True}])
def test_int8_is_a_quarter_of_the_size_and_close(
    exported: Any, jobs: ModuleType, tmp_path: Path, options: dict[str, Any]
) -> None:
    job = run(jobs, tmp_path / "a", quantize, exported.output, "onnx", **options)
    again = run(jobs, tmp_path / "b", quantize, exported.output, "onnx", **options)
    graph = (job.output / "model.onnx").read_bytes()
    assert graph == (again.output / "model.onnx").read_bytes()
    assert shipped_bytes(job.output) == len(graph)
    assert read_card(job.output).quantization == "dynamic_int8"
    # The graph's own text is most of what is left of so small a model; its weights shrink to a quarter.
    assert job.metrics["size_ratio"] < 0.75
    assert onnx_parameters(job.output / "model.onnx") == onnx_parameters(exported.output / "model.onnx")
    full, small = OnnxRuntime(exported.output, 1), OnnxRuntime(job.output, 1)
    ids = np.random.default_rng(0).integers(3, 50, (16, 20))
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    error = np.abs(full.outputs(batch)["logits"] - small.outputs(batch)["logits"]).max()
    assert 0 < error < 0.2 * np.abs(full.outputs(batch)["logits"]).max()


def test_quantizing_twice_is_refused(exported: Any, jobs: ModuleType, tmp_path: Path) -> None:
    job = run(jobs, tmp_path / "a", quantize, exported.output, "onnx")
    with pytest.raises(StageError, match="is quantized already"):
        run(jobs, tmp_path / "b", quantize, job.output, "onnx")


def test_model_without_a_card(tiny: ModuleType, jobs: ModuleType, tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path / "bare")
    with pytest.raises(StageError, match=r"no readable forgeline\.json"):
        run(jobs, tmp_path / "a", export, tmp_path / "bare", "model")
