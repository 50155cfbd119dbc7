"""Pruning of single weights: masks against their definitions, reconstruction against least squares, healing keeps zeros."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from infra.errors import StageError
from infra.execution import Execution
from tasks.compression.pruning.calibration import calibration_batches, matrix, second_moments
from tasks.compression.pruning.weights import Sparsity, prune_weights
from tasks.compression.reconstruction import inverse_factor, reconstruct
from tasks.models.card import ModelCard, write_card
from tasks.models.structure.parts import matrices
from tasks.objectives.text.causal_lm import CausalLM
from tasks.stages import prune


def model_of(tiny: ModuleType, type: str) -> Any:
    return tiny.model(type, AutoModelForTokenClassification if type == "bert" else AutoModelForCausalLM)


def batches_of(tiny: ModuleType) -> Any:
    return calibration_batches(CausalLM(), tiny.lm_features(24), 20)


class _Removed:
    """Columns that are removed whole."""

    def __init__(self, places: set[int]) -> None:
        self.places, self.begun = places, 0

    def begin(self, weight: torch.Tensor, factor: torch.Tensor) -> None:
        self.first, self.begun = self.begun, self.begun + weight.shape[1]

    def project(self, column: torch.Tensor, place: int) -> torch.Tensor:
        return column * 0 if self.first + place in self.places else column


@pytest.mark.parametrize("block", [1, 3, 8])
def test_the_weights_that_stay_are_the_least_squares_fit(block: int) -> None:
    """With the first columns gone, all others are free: numpy's own solution of min |X W^T - X V^T| is the answer."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 8, generator=draw, dtype=torch.float64) @ torch.randn(8, 8, generator=draw).double()
    weight = torch.randn(5, 8, generator=draw, dtype=torch.float64)
    found = reconstruct(weight, inverse_factor(inputs.T @ inputs, damping=0.0), _Removed({0, 1, 2}), block)
    best = torch.linalg.lstsq(inputs[:, 3:], inputs @ weight.T).solution.T
    torch.testing.assert_close(found[:, 3:], best, atol=1e-6, rtol=0)
    assert not found[:, :3].any()


def test_inputs_that_are_always_zero_or_equal_have_an_inverse_too() -> None:
    same = torch.ones(4, 4, dtype=torch.float64)
    same[3], same[:, 3] = 0, 0
    for moments in (same, torch.zeros(4, 4)):
        factor = inverse_factor(moments)
        assert torch.isfinite(factor).all() and torch.equal(factor, factor.triu())


@given(st.integers(1, 6), st.integers(1, 9), st.floats(0, 1), st.booleans(), st.integers(0, 99))
def test_a_mask_keeps_the_share_asked_for_and_the_highest(
    rows: int, width: int, keep: float, by_row: bool, seed: int
) -> None:
    scores = torch.rand(rows, width, generator=torch.Generator().manual_seed(seed))
    mask = Sparsity(keep).mask(scores, by_row=by_row)
    for kept, part in zip(mask, scores, strict=True) if by_row else [(mask, scores)]:
        assert int(kept.sum()) == round(keep * part.numel())
        if kept.any() and not kept.all():
            assert part[kept].min() >= part[~kept].max()


def test_n_of_m_side_by_side_stay() -> None:
    scores = torch.tensor([[1.0, 4, 2, 3, 9, 9, 9, 9]])
    assert Sparsity(0.5, 2, 4).mask(scores).tolist() == [[False, True, False, True, True, True, False, False]]
    with pytest.raises(StageError, match="rows of 8 weights do not divide into groups of 3"):
        Sparsity(2 / 3, 2, 3).mask(scores)


@pytest.mark.parametrize("type", ["llama", "gpt2", "bert"])
def test_moments_are_those_of_the_inputs_without_padding(tiny: ModuleType, type: str) -> None:
    model, batches = model_of(tiny, type), batches_of(tiny)
    modules = matrices(model)[1]
    found = second_moments(model, modules, batches, full=True)
    assert found.keys() == modules.keys() and len(modules) == {"llama": 7, "gpt2": 4, "bert": 6}[type]
    name, module = next(iter(modules.items()))
    seen = []
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for batch in batches:
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            model(input_ids=row[mask == 1][None])  # alone there is no padding
    hook.remove()
    rows = torch.cat([x[0] for x in seen]).double()
    torch.testing.assert_close(found[name], rows.T @ rows, atol=1e-3, rtol=1e-4)
    diagonal = second_moments(model, modules, batches, full=False)[name]
    torch.testing.assert_close(diagonal, found[name].diagonal(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("type", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("sparsity", [Sparsity(0.5), Sparsity(0.5, 2, 4)], ids=["half", "2:4"])
def test_the_masks_are_where_the_model_is_not_zero(
    tiny: ModuleType, type: str, method: Any, sparsity: Sparsity
) -> None:
    model = model_of(tiny, type)
    masks = prune_weights(model, batches_of(tiny), method, sparsity)
    weights = dict(model.named_parameters())
    assert len(masks) == sum(map(len, matrices(model)))
    for name, mask in masks.items():
        assert torch.equal(weights[name] != 0, mask), name
        assert float(mask.float().mean()) == pytest.approx(0.5, abs=0.01)
    if sparsity.m:
        for layer in matrices(model):
            for module in layer.values():
                assert ((matrix(module) != 0).reshape(-1, 4).sum(1) == 2).all()


def test_wanda_keeps_small_weights_of_loud_inputs(tiny: ModuleType) -> None:
    """|w| = 1 everywhere but at one input, where it is half: by size those go first, by Wanda they stay."""
    model, batches = model_of(tiny, "llama"), batches_of(tiny)
    modules = matrices(model)[0]
    name = next(iter(modules))
    model.model.layers[0].input_layernorm.weight.data[5] = 20.0
    matrix(modules[name]).fill_(1.0)[:, 5] = 0.5
    by_size, by_wanda = (prune_weights(model_copy(model), batches, m, Sparsity(0.5)) for m in ("magnitude", "wanda"))
    assert not by_size[f"{name}.weight"][:, 5].any() and by_wanda[f"{name}.weight"][:, 5].all()


def model_copy(model: Any) -> Any:
    again = type(model)(model.config).train(False)
    again.load_state_dict(model.state_dict())
    return again


def test_reconstruction_leaves_less_error_than_dropping_weights(tiny: ModuleType) -> None:
    """The first layer's outputs on the calibration inputs, against those of the dense layer."""
    batches, errors = batches_of(tiny), {}
    dense = model_of(tiny, "llama")
    modules = matrices(dense)[0]
    name = next(iter(modules))
    moments = second_moments(dense, modules, batches, full=True)[name]
    for method in ("magnitude", "wanda", "sparsegpt"):
        model = model_copy(dense)
        prune_weights(model, batches, method, Sparsity(0.5))  # type: ignore[arg-type]
        change = matrix(matrices(model)[0][name]).double() - matrix(modules[name]).double()
        errors[method] = float((change @ moments * change).sum())
    assert errors["sparsegpt"] < min(errors["wanda"], errors["magnitude"])


def test_in_the_whole_model_layers_of_small_weights_lose_more(tiny: ModuleType) -> None:
    model = model_of(tiny, "llama")
    low, high = matrices(model)
    for module in low.values():
        matrix(module).mul_(0.1)
    masks = prune_weights(model, [], "magnitude", Sparsity(0.5), whole_model=True)
    shares = [sum(masks[f"{n}.weight"].sum() for n in part) for part in (low, high)]
    assert shares[0] < 0.2 * shares[1]
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.5 * total)


# --- the stage --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(jobs: ModuleType, tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A llama that was trained for nothing, and packed functions of the standard library."""
    made = tiny.write_inputs(tmp_path_factory.mktemp("pruning"))
    model = tiny.model("llama", vocabulary=tiny.VOCABULARY)
    model.save_pretrained(made / "model")
    for file in (made / "tokenizer").iterdir():
        (made / "model" / file.name).write_bytes(file.read_bytes())
    write_card(made / "model", ModelCard({"name": "causal_lm"}, tiny.CONTEXT))
    dense = jobs.artifact(made / "model", "model")
    return {"model": dense, "data": jobs.artifact(made / "tokens", "tokens"), "heal.teacher": dense}


def pruned_by_stage(jobs: ModuleType, place: Path, inputs: dict[str, Any], given: dict[str, Any], **job: Any) -> Any:
    params = prune.Params.model_validate({"model": "m", "data": "d", "method": "wanda", "samples": 32, **given})
    wanted = inputs if params.heal and params.heal.teacher else {k: inputs[k] for k in ("model", "data")}
    made = jobs.make_job(place, params, wanted, **job)
    metrics = prune.STAGE.run(made)
    return AutoModelForCausalLM.from_pretrained(made.output), metrics


HEAL = {"max_steps": 6, "global_batch_size": 8, "learning_rate": 5e-3}


@pytest.mark.parametrize(
    ("heal", "execution"),
    [
        ({}, {}),
        ({"teacher": "m", "alpha": 0.2}, {}),
        ({"optimizer": {"name": "lion"}, "ema": 0.5}, {}),
        ({"optimizer": {"weight_decay": 0.5}}, {"zero_stage": 1, "offload_optimizer": True}),
        ({}, {"zero_stage": 2, "offload_optimizer": True, "per_device_train_batch_size": 2}),
        ({}, {"zero_stage": 3, "offload_optimizer": True}),
    ],
    ids=["plain", "teacher", "lion and ema", "zero 1 and decay", "zero 2", "zero 3"],
)
def test_healing_trains_what_is_left_and_nothing_else(
    jobs: ModuleType, inputs: dict[str, Any], tmp_path: Path, heal: dict[str, Any], execution: dict[str, Any]
) -> None:
    cut, before = pruned_by_stage(jobs, tmp_path / "cut", inputs, {"pattern": "2:4"})
    healed, after = pruned_by_stage(
        jobs, tmp_path / "healed", inputs, {"pattern": "2:4", "heal": {**HEAL, **heal}}, execution=execution
    )
    assert before["sparsity"] == after["sparsity"] == 0.5 and after["parameters_ratio"] == 1.0
    assert after["validation_loss"] < before["validation_loss"]
    for layer, layer_after in zip(matrices(cut), matrices(healed), strict=True):
        for name, module in layer.items():
            assert torch.equal(matrix(module) == 0, matrix(layer_after[name]) == 0), name
            assert not torch.equal(matrix(module), matrix(layer_after[name])), name


def test_a_teacher_has_its_share_in_the_healing(jobs: ModuleType, inputs: dict[str, Any], tmp_path: Path) -> None:
    def weight(name: str, **heal: Any) -> torch.Tensor:
        healed, _ = pruned_by_stage(jobs, tmp_path / name, inputs, {"heal": {**HEAL, **heal}})
        return healed.get_input_embeddings().weight

    alone, unheard, heard = weight("a"), weight("b", teacher="m", alpha=0.0), weight("c", teacher="m", alpha=1.0)
    assert torch.equal(alone, unheard) and not torch.equal(alone, heard)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"method": "ffn_width", "pattern": "2:4"}, "go at once: choose magnitude, wanda"),
        ({"pattern": "2:4", "keep": 0.5}, "leave out `keep`"),
        ({"pattern": "4:4"}, "`pattern: 4:4` removes nothing"),
        ({"scope": "model"}, "`scope: model` is for `method: magnitude or movement`"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        prune.Params.model_validate({"model": "m", "data": "d", "method": "wanda", **given})


def test_an_optimizer_that_would_fill_removed_weights_is_refused() -> None:
    heal = {**HEAL, "optimizer": {"name": "muon"}}
    params = prune.Params.model_validate({"model": "m", "data": "d", "method": "wanda", "heal": heal})
    (fault,) = prune.check(params, Execution())
    assert fault.path == ("heal", "optimizer", "name") and "would come back" in fault.message
