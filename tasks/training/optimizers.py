"""The optimizers, and the names under which each keeps its moments: what a checkpoint holds beside the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tasks.training.settings import OptimizerParams

Groups = list[dict[str, Any]]


def make_optimizer(params: OptimizerParams, groups: Groups) -> torch.optim.Optimizer:
    """Over `parameter_groups`, at a learning rate of zero until the loop sets one."""
    if params.name == "lion":
        return Lion(groups, params.betas)
    if params.name == "muon":
        return MuonWithAdamW(groups, params)
    return torch.optim.AdamW(groups, lr=0.0, betas=params.betas, eps=params.eps, fused=True)


def moments(params: OptimizerParams, group: dict[str, Any]) -> tuple[str, ...]:
    """Names of what the optimizer keeps of each parameter of a group, of the parameter's shape."""
    if params.name == "lion":
        return ("exp_avg",)
    return ("momentum_buffer",) if group["muon"] else ("exp_avg", "exp_avg_sq")


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
