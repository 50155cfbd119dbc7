"""Pruning while a model learns: against a bare torch loop, at every ZeRO stage, and cut short on the way."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification

from infra.errors import Preempted
from tasks.compression.pruning.gradual import GradualPruning
from tasks.compression.pruning.schedule import PruningSchedule
from tasks.compression.pruning.weights import release_zeros
from tasks.models.card import ModelCard, write_card
from tasks.models.inputs import model_inputs
from tasks.models.structure.parts import matrices
from tasks.objectives.text.causal_lm import CausalLM
from tasks.stages import prune
from tasks.training.engine.batch import BatchSplit
from tasks.training.loop.sampler import Sampler
from tasks.training.loop.schedule import learning_rate_factor
from tasks.training.loop.train import train
from tasks.training.settings import TrainingParams

STEPS = 12
KEEP = 0.3
SCHEDULE = PruningSchedule(every=2, until=0.7)  # removes after steps 2, 4, 6 and 8
METHODS = ["magnitude", "movement"]


def params(**given: Any) -> TrainingParams:
    return TrainingParams.model_validate(
        {"max_steps": STEPS, "global_batch_size": 8, "learning_rate": 1e-2, "max_grad_norm": 0.5, "seed": 3, **given}
    )


def alone_at(zero_stage: int) -> dict[str, Any]:
    """Execution settings with which one rank really trains at that ZeRO stage: it has to offload something."""
    return {"zero_stage": zero_stage, "offload_optimizer": zero_stage > 0}


def trained(
    jobs: ModuleType,
    tiny: ModuleType,
    folder: Path,
    method: Any,
    *,
    whole_model: bool = False,
    given: TrainingParams | None = None,
    model: Any = None,
    keep: float = KEEP,
    loss_fn: Any = None,
    **job: Any,
) -> dict[str, torch.Tensor]:
    """The weights of a tiny llama that was pruned while it learned."""
    model, features = model or tiny.model(), tiny.lm_features(40)
    pruning = GradualPruning(model, method, SCHEDULE, keep, whole_model=whole_model)
    made = jobs.make_job(folder, given or params(), **job)
    more = {"loss_fn": loss_fn, "tuning": pruning.tuning, "after_step": pruning}
    result = train(made, model, CausalLM(), features, [], given or params(), **more)
    masks = release_zeros(model)
    weights = {name: value.detach() for name, value in result.model.named_parameters()}
    assert masks.keys() == pruning.layers.keys()
    assert made.rank or not any(weights[name][~masks[name]].any() for name in masks)  # it is whole on rank 0 only
    return weights


def sparse_names(model: Any) -> list[str]:
    return [f"{name}.weight" for layer in matrices(model) for name in layer]


def bare_loop(tiny: ModuleType, method: str, whole_model: bool) -> dict[str, torch.Tensor]:
    """The reference: AdamW over whole global batches; what has gone is multiplied away in the forward pass."""
    model, features, sampler = tiny.model().train(), tiny.lm_features(40), Sampler(40, 3, BatchSplit(8, 1, 8))
    names, weights = sparse_names(model), dict(model.named_parameters())
    masks = {name: torch.ones_like(weights[name]) for name in names}
    scores = {name: torch.zeros_like(weights[name]) for name in names}
    decayed, rest = ([p for p in model.parameters() if (p.ndim >= 2) == matrix] for matrix in (True, False))
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}])
    for step in range(STEPS):
        batch = CausalLM().collate([features[i] for i in sampler.global_batch(step)])
        total, units = CausalLM().loss(
            {"logits": CausalLM().read(model(**model_inputs(batch, model)))["logits"]}, batch
        )
        (total / units).backward()
        with torch.no_grad():
            for name in names:
                weights[name].grad.mul_(masks[name])
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            for name in names:
                scores[name] -= weights[name] * weights[name].grad
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * learning_rate_factor(params().schedule, step, STEPS)
            optimizer.step()
            optimizer.zero_grad()
            share = SCHEDULE.kept(step + 1, STEPS, KEEP)
            for group in ([names] if whole_model else [[name] for name in names]) if share is not None else []:
                values = {n: weights[n].abs() if method == "magnitude" else scores[n] for n in group}
                ranked = torch.cat([torch.where(masks[n] == 1, values[n], -torch.inf).flatten() for n in group])
                highest = torch.zeros(len(ranked)).index_fill_(0, ranked.argsort()[-round(share * len(ranked)) :], 1)
                for name, mask in zip(group, highest.split([weights[n].numel() for n in group]), strict=True):
                    masks[name] = mask.view_as(weights[name])
            for name in names:  # whatever momentum is left
                weights[name].mul_(masks[name])
    return {name: value.detach() for name, value in model.named_parameters()}


def zeros(weights: dict[str, torch.Tensor], names: list[str]) -> torch.Tensor:
    return torch.cat([(weights[name] == 0).flatten() for name in names])


@pytest.mark.parametrize(
    ("method", "whole_model", "zero_stage"),
    [
        ("magnitude", False, 0),
        ("magnitude", True, 0),
        ("magnitude", False, 2),
        ("movement", False, 0),
        ("movement", True, 0),
        ("movement", False, 1),
        ("movement", False, 2),
        ("movement", False, 3),
    ],
)
def test_equals_a_bare_torch_loop(
    jobs: ModuleType, tiny: ModuleType, tmp_path: Path, method: str, whole_model: bool, zero_stage: int
) -> None:
    """Catches wrong scores, removal at another step, momentum that moves what has gone, gradients of it in the norm."""
    execution = {**alone_at(zero_stage), "per_device_train_batch_size": 4}
    found = trained(jobs, tiny, tmp_path, method, whole_model=whole_model, execution=execution)
    expected, names = bare_loop(tiny, method, whole_model), sparse_names(tiny.model())
    gone = zeros(found, names)
    if whole_model:
        assert int(gone.sum()) == gone.numel() - round(KEEP * gone.numel())
    else:
        assert all(int((found[n] == 0).sum()) == found[n].numel() - round(KEEP * found[n].numel()) for n in names)
    assert torch.equal(gone, zeros(expected, names))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("method", "zero_stage"), [("magnitude", 0), ("magnitude", 3), *[("movement", z) for z in range(4)]]
)
def test_a_resumed_training_ends_bit_for_bit_where_the_undisturbed_one_does(
    jobs: ModuleType, tiny: ModuleType, tmp_path: Path, method: str, zero_stage: int
) -> None:
    """Stopped between two removals: the masks must come back with their layers, and the scores so far."""
    shared = {"execution": alone_at(zero_stage), "given": params(ema=0.5)}
    straight = trained(jobs, tiny, tmp_path / "straight", method, **shared)
    questions = iter(range(100))
    with pytest.raises(Preempted, match="before step 6 of 12"):
        trained(
            jobs,
            tiny,
            tmp_path / "stopped",
            method,
            store=tmp_path / "store",
            stop_requested=lambda: next(questions) >= 5,
            **shared,
        )
    resumed = trained(jobs, tiny, tmp_path / "resumed", method, store=tmp_path / "store", **shared)
    for name, value in straight.items():
        assert torch.equal(resumed[name], value), name


def test_a_checkpoint_goes_on_at_another_zero_stage(jobs: ModuleType, tiny: ModuleType, tmp_path: Path) -> None:
    straight = trained(jobs, tiny, tmp_path / "straight", "movement")
    for before, after in ((0, 3), (2, 0)):
        store, questions = tmp_path / f"{before}/store", iter(range(100))
        with pytest.raises(Preempted):
            trained(
                jobs,
                tiny,
                tmp_path / f"{before}",
                "movement",
                execution=alone_at(before),
                store=store,
                stop_requested=lambda q=questions: next(q) >= 5,
            )
        moved = trained(jobs, tiny, tmp_path / f"{after}-after", "movement", execution=alone_at(after), store=store)
        for name, value in straight.items():
            torch.testing.assert_close(moved[name], value, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_movement_keeps_what_grows_and_magnitude_what_is_large(
    jobs: ModuleType, tiny: ModuleType, tmp_path: Path, method: str
) -> None:
    """A matrix of large weights that the loss makes smaller and small ones that it makes larger, half of each."""
    model = tiny.model()
    weight = model.model.layers[0].mlp.up_proj.weight
    large = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    weight.data.copy_(torch.where(large, 1.0, 0.1))
    target = torch.where(large, 0.6, 0.4)

    def loss(outputs: Any, batch: Any) -> torch.Tensor:
        return 0 * outputs["logits"].sum() + (weight - target).square().sum() * CausalLM().units(batch)

    keep = float(large.float().mean()) if method == "magnitude" else 1 - float(large.float().mean())
    kept = trained(jobs, tiny, tmp_path, method, model=model, keep=keep, loss_fn=loss)[
        "model.layers.0.mlp.up_proj.weight"
    ]
    assert torch.equal(kept != 0, large if method == "magnitude" else ~large)


@pytest.mark.parametrize("method", METHODS)
def test_what_has_gone_never_comes_back(jobs: ModuleType, tiny: ModuleType, tmp_path: Path, method: Any) -> None:
    """Looked at after every step, under Lion, whose updates are of one size however small the gradient."""
    model, seen = tiny.model(), []
    names = sparse_names(model)
    pruning = GradualPruning(model, method, SCHEDULE, KEEP)

    def after_step(step: int, total: int, parameters: Any) -> None:
        pruning(step, total, parameters)
        seen.append(zeros(dict(model.named_parameters()), names))

    given = params(optimizer={"name": "lion"}, learning_rate=1e-3)
    train(
        jobs.make_job(tmp_path, given),
        model,
        CausalLM(),
        tiny.lm_features(40),
        [],
        given,
        tuning=pruning.tuning,
        after_step=after_step,
    )
    assert len(seen) == STEPS and not any(
        (before & ~after).any() for before, after in zip(seen, seen[1:], strict=False)
    )
    shares = [float(gone.float().mean()) for gone in seen]
    assert shares[0] == 0 and shares[1] == pytest.approx(0.7 * (1 - 0.75**3), abs=1e-3)
    assert shares[7:] == pytest.approx([0.7] * 5, abs=1e-3)


# --- the stage --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(jobs: ModuleType, tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_inputs(jobs, tiny, tmp_path_factory.mktemp("gradual"))


def write_inputs(jobs: Any, tiny: Any, folder: Path) -> dict[str, Any]:
    """A llama that was trained for nothing, and packed functions of the standard library."""
    if not (folder / "model").exists():
        tiny.write_inputs(folder)
        tiny.model("llama", vocabulary=tiny.VOCABULARY).save_pretrained(folder / "model")
        for file in (folder / "tokenizer").iterdir():
            (folder / "model" / file.name).write_bytes(file.read_bytes())
        write_card(folder / "model", ModelCard({"name": "causal_lm"}, tiny.CONTEXT))
    dense = jobs.artifact(folder / "model", "model")
    return {"model": dense, "data": jobs.artifact(folder / "tokens", "tokens"), "heal.teacher": dense}


HEAL = {"max_steps": 8, "global_batch_size": 8, "learning_rate": 5e-3}


def stage(
    jobs: Any, folder: Path, inputs: Any, given: dict[str, Any], **job: Any
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """The stage's metrics, and the tensors of the file that ships, on rank 0."""
    wanted = prune.Params.model_validate({"model": "m", "data": "d", "samples": 16, "keep": 0.4, "heal": HEAL, **given})
    made = jobs.make_job(folder, wanted, inputs, **job)
    metrics = prune.STAGE.run(made)
    return metrics, {} if made.rank else load_file(made.output / "model.safetensors")


@pytest.mark.parametrize(
    ("given", "heal"),
    [
        ({"method": "magnitude"}, {}),
        ({"method": "movement", "scope": "model"}, {"teacher": "m", "alpha": 0.2}),
        ({"method": "movement"}, {"ema": 0.5}),
    ],
    ids=["magnitude", "teacher", "ema"],
)
def test_the_model_that_ships_is_as_sparse_as_asked_for(
    jobs: ModuleType, inputs: Any, tmp_path: Path, given: dict[str, Any], heal: dict[str, Any]
) -> None:
    metrics, tensors = stage(jobs, tmp_path, inputs, {**given, "heal": {**HEAL, **heal}, "schedule": {"every": 2}})
    before = load_file(inputs["model"].path / "model.safetensors")
    assert tensors.keys() == before.keys(), "masks do not ship"
    matrices = [value for name, value in tensors.items() if "proj" in name]
    gone, count = sum(int((m == 0).sum()) for m in matrices), sum(m.numel() for m in matrices)
    assert metrics["sparsity"] == gone / count == pytest.approx(0.6, abs=1e-3)
    assert metrics["parameters_ratio"] == 1.0


def test_weights_of_the_other_families_are_found(jobs: ModuleType, tiny: ModuleType, tmp_path: Path) -> None:
    """gpt2 stores its matrices the other way round; bert has six to a layer."""
    for type, count in (("gpt2", 8), ("bert", 12)):
        model = tiny.model(type) if type == "gpt2" else tiny.model(type, AutoModelForTokenClassification, num_labels=50)
        names = sparse_names(model)
        found = trained(jobs, tiny, tmp_path / type, "movement", model=model)
        assert len(names) == count
        assert all(int((found[n] == 0).sum()) == found[n].numel() - round(KEEP * found[n].numel()) for n in names)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"method": "magnitude", "heal": None}, "while the model heals: give `heal`"),
        ({"method": "movement", "heal": None}, "moves towards zero: give `heal` and `schedule`"),
        ({"method": "movement", "schedule": None}, "moves towards zero: give `heal` and `schedule`"),
        ({"method": "movement", "pattern": "2:4", "keep": None}, "go at once: choose magnitude, wanda, sparsegpt"),
        ({"method": "magnitude", "pattern": "2:4", "keep": None}, "`schedule` is for .*, without `pattern`"),
        ({"method": "wanda"}, "`schedule` is for `method: magnitude or movement`"),
        ({"method": "ffn_width"}, "the others prune at once"),
        ({"method": "magnitude", "schedule": {"until": 1.5}}, "less than or equal to 1"),
        ({"method": "movement", "heal": {**HEAL, "keep": "best", "eval_every": 2}}, "`keep: best` and `patience`"),
        ({"method": "movement", "heal": {**HEAL, "patience": 1, "eval_every": 2}}, "`keep: best` and `patience`"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        prune.Params.model_validate({"model": "m", "data": "d", "keep": 0.4, "heal": HEAL, "schedule": {}, **given})
