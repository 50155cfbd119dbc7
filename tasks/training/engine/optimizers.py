"""The optimizers, and the names under which each keeps its moments: what a checkpoint holds beside the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tasks.training.settings import OptimizerParams

Groups = list[dict[str, Any]]
SCORE = "score"
"""The moment that says how far a weight moved away from zero, in groups that are `scored`."""


def make_optimizer(params: OptimizerParams, groups: Groups) -> torch.optim.Optimizer:
    """Over `parameter_groups`, at a learning rate of zero until the loop sets one."""
    optimizer: torch.optim.Optimizer
    if params.name == "lion":
        optimizer = Lion(groups, params.betas)
    elif params.name == "muon":
        optimizer = MuonWithAdamW(groups, params)
    else:
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=params.betas, eps=params.eps, fused=True)
    if any(group["scored"] for group in groups):
        _Movement(optimizer)
    return optimizer


def moments(params: OptimizerParams, group: dict[str, Any]) -> tuple[str, ...]:
    """Names of what the optimizer keeps of each parameter of a group, of the parameter's shape."""
    score = (SCORE,) if group["scored"] else ()
    if params.name == "lion":
        return ("exp_avg", *score)
    return ("momentum_buffer", *score) if group["muon"] else ("exp_avg", "exp_avg_sq", *score)


class _Movement:
    """Adds - w dL/dw of each update, with the weight before it and the gradient it uses, to the score of a weight."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.moved: list[tuple[torch.Tensor, torch.Tensor]] = []
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    @torch.no_grad()
    def _before(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        scored = [p for group in optimizer.param_groups if group["scored"] for p in group["params"]]
        self.moved = [(p, -p * p.grad) for p in scored if p.grad is not None]

    @torch.no_grad()
    def _after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # Only now: AdamW makes its moments where a parameter has no state yet.
        for parameter, moved in self.moved:
            state = optimizer.state[parameter]
            state[SCORE] = state[SCORE].add_(moved) if SCORE in state else moved
        self.moved = []


class Lion(torch.optim.Optimizer):
    """The sign of an interpolated momentum, with decoupled decay (Chen et al., 2023, algorithm 2).

    u = sign(b1 m + (1 - b1) g);  w -= lr (u + decay w);  m = b2 m + (1 - b2) g
    """

    def __init__(self, groups: Groups, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            rate, (first, second) = group["lr"], group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "exp_avg" not in state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                momentum, gradient = state["exp_avg"], parameter.grad
                parameter.mul_(1 - rate * group["weight_decay"])
                parameter.add_(momentum.lerp(gradient, 1 - first).sign_(), alpha=-rate)
                momentum.lerp_(gradient, 1 - second)


class MuonWithAdamW(torch.optim.Optimizer):
    """torch's Muon for the matrices of the layers, AdamW for all else: embeddings, head, norms, biases.

    Muon's step is scaled to the size of AdamW's (Liu et al., 2025), so both go by one learning rate.
    """

    def __init__(self, groups: Groups, params: OptimizerParams) -> None:
        super().__init__(groups, {"lr": 0.0})
        mine = [group for group in self.param_groups if group["muon"]]
        rest = [group for group in self.param_groups if not group["muon"]]
        self.parts: list[torch.optim.Optimizer] = []
        if mine:
            muon = torch.optim.Muon(mine, lr=0.0, momentum=params.betas[0], adjust_lr_fn="match_rms_adamw")
            self.parts.append(muon)
        if rest:
            self.parts.append(torch.optim.AdamW(rest, lr=0.0, betas=params.betas, eps=params.eps, fused=True))
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        for part in self.parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()
