"""Running statistics of a model are part of its state: they go with the weights that are kept, and with no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from infra.errors import Preempted
from tasks.objectives.text.causal_lm import CausalLM
from tasks.training.loop.result import TrainResult
from tasks.training.loop.train import train
from tasks.training.settings import TrainingParams

STEPS = 12


class Running(torch.nn.Module):
    """A norm that keeps the running mean of what it saw while it trained, as BatchNorm does; poisoned at one call."""

    def __init__(self, norm: torch.nn.Module, size: int, poisoned: int | None) -> None:
        super().__init__()
        self.norm, self.calls, self.poisoned = norm, 0, poisoned
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
            if self.calls == self.poisoned:
                states = states * float("nan")
            self.mean.lerp_(states.detach().mean((0, 1)), 0.25)
            self.seen += 1
        return self.norm(states)


def model_of(tiny: ModuleType, poisoned: int | None = None) -> Any:
    model = tiny.model("llama")
    model.model.norm = Running(model.model.norm, model.config.hidden_size, poisoned)
    return model


def trained(
    jobs: ModuleType, tiny: ModuleType, folder: Path, model: Any, *, job: dict[str, Any] | None = None, **given: Any
) -> TrainResult:
    hooks = {name: given.pop(name) for name in ("validate", "after_step") if name in given}
    fields = {"max_steps": STEPS, "global_batch_size": 8, "learning_rate": 1e-2, "seed": 3, **given}
    params = TrainingParams.model_validate(fields)
    features = tiny.lm_features(40)
    made = jobs.make_job(folder, params, **(job or {}))
    rebuild: Callable[[], Any] = lambda: model_of(tiny)  # noqa: E731
    return train(made, model, CausalLM(), features, features[:5], params, rebuild=rebuild, **hooks)


def test_the_best_weights_keep_the_statistics_they_had(jobs: ModuleType, tiny: ModuleType, tmp_path: Path) -> None:
    model, met, losses = model_of(tiny), list[torch.Tensor](), iter([3.0, 1.0, 2.0, 2.0])

    def validate(*_: Any) -> dict[str, float]:
        met.append(model.model.norm.mean.clone())
        return {"loss": next(losses)}

    given = {"keep": "best", "watch": "loss", "eval_every": 3}
    result = trained(jobs, tiny, tmp_path, model, validate=validate, **given)
    kept: Any = result.model.get_submodule("model.norm")
    assert torch.equal(kept.mean, met[1]) and int(kept.seen) == 6
    assert not torch.equal(met[1], met[3]), "they moved on"


def test_the_average_of_weights_has_the_average_of_their_statistics(
    jobs: ModuleType, tiny: ModuleType, tmp_path: Path
) -> None:
    model = model_of(tiny)
    average = model.model.norm.mean.clone()

    def after_step(*_: Any) -> None:
        average.lerp_(model.model.norm.mean, 1 - 0.8)

    result = trained(jobs, tiny, tmp_path, model, after_step=after_step, ema=0.8)
    kept: Any = result.model.get_submodule("model.norm")
    torch.testing.assert_close(kept.mean, average)
    assert int(kept.seen) == STEPS, "a counter is no average"


def test_a_step_that_is_skipped_leaves_no_statistics_behind(jobs: ModuleType, tiny: ModuleType, tmp_path: Path) -> None:
    result = trained(jobs, tiny, tmp_path, model_of(tiny, poisoned=4))
    assert result.summary["skipped_updates"] == 1
    kept: Any = result.model.get_submodule("model.norm")
    assert torch.isfinite(kept.mean).all() and int(kept.seen) == STEPS - 1


@pytest.mark.parametrize("given", [{}, {"ema": 0.8}, {"keep": "best", "eval_every": 3}], ids=["last", "ema", "best"])
def test_a_resumed_training_ends_in_the_same_statistics(
    jobs: ModuleType, tiny: ModuleType, tmp_path: Path, given: dict[str, Any]
) -> None:
    whole: Any = trained(jobs, tiny, tmp_path / "whole", model_of(tiny), **given).model.get_submodule("model.norm")
    asked = iter([*[False] * 7, *[True] * 9])
    cut = {"stop_requested": lambda: next(asked), "store": tmp_path / "store"}
    with pytest.raises(Preempted):
        trained(jobs, tiny, tmp_path / "cut", model_of(tiny), job=cut, **given)
    again = trained(jobs, tiny, tmp_path / "again", model_of(tiny), job={"store": tmp_path / "store"}, **given)
    resumed: Any = again.model.get_submodule("model.norm")
    assert torch.equal(resumed.mean, whole.mean) and torch.equal(resumed.seen, whole.seen)
