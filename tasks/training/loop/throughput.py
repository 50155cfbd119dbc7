"""How much of the machine a training run uses: the model's arithmetic against a matrix product measured here and now.

MFU (model FLOPs utilisation) is usually given against a data sheet. Against a product of the same number format on the
same threads it says what better code could still gain on this very machine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from tasks.models.inputs import model_inputs
from tasks.objective import Feature, Objective

REPEATS = 4


@dataclass(frozen=True)
class ModelFlops:
    """Floating-point operations of the forward and backward pass for one unit of work: a token, an image.

    Of tokens: 6 for each weight that meets every token, and for attention 12 x layers x hidden size, for each token of
    the sequence it stands in (Chowdhery et al., 2022, appendix B). An input embedding is looked up, not multiplied,
    unless the output layer shares it. Of anything else: three times what torch counts in a forward pass of the first
    example. Recomputed activations do not count.
    """

    weights: float
    attention: float = 0.0

    @classmethod
    def of(cls, model: PreTrainedModel, objective: Objective, examples: Sequence[Feature]) -> ModelFlops | None:
        """Of a whole model: call it before ZeRO takes the weights apart. None where tokens do not meet equal layers."""
        return cls.of_tokens(model) if objective.work_unit == "tokens" else cls._counted(model, objective, examples)

    @classmethod
    def of_tokens(cls, model: PreTrainedModel) -> ModelFlops | None:
        """By the formula; None where the config does not say how many layers there are, or how wide."""
        layers, hidden = (getattr(model.config, name, None) for name in ("num_hidden_layers", "hidden_size"))
        if not isinstance(layers, int) or not isinstance(hidden, int):
            return None
        inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[no-untyped-call]
        multiplied = sum(parameter.numel() for parameter in model.parameters())
        if inputs is not None and (outputs is None or outputs.weight is not inputs.weight):
            multiplied -= sum(parameter.numel() for parameter in inputs.parameters())
        return cls(6.0 * multiplied, 12.0 * layers * hidden)

    @classmethod
    def _counted(cls, model: PreTrainedModel, objective: Objective, examples: Sequence[Feature]) -> ModelFlops | None:
        from torch.utils.flop_counter import FlopCounterMode

        batch = objective.collate([objective.noised(examples[0], 0)])
        work, training = objective.work(batch), model.training
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.train(False)(**model_inputs(batch, model))
        model.train(training)
        return cls(3.0 * counter.get_total_flops() / work) if work else None

    def per_unit(self, length: int) -> float:
        """For a unit of work in an example of `length` units."""
        return self.weights + self.attention * length


def matrix_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a square matrix product on this process's threads or GPU: the best of a few."""
    size = 8192 if device.type == "cuda" else 768
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best


def memory_mb(device: torch.device) -> float:
    """Memory in use, in MB (10^6 bytes): resident on a CPU; on a GPU the most that tensors held at once."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    from infra.process_memory import resident_mb

    return resident_mb()
