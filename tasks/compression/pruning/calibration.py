"""What the linear layers of a model read: second moments of their inputs over calibration examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tasks.compression.reconstruction import check_calibration
from tasks.models.inputs import model_inputs
from tasks.models.structure.transformer import layer_stacks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.objective import Feature, Objective

Batch = Mapping[str, torch.Tensor]
BATCH = 16


def calibration_batches(
    objective: Objective, features: Sequence[Feature], samples: int
) -> list[dict[str, torch.Tensor]]:
    """Batches of up to `samples` examples, spread evenly over the split, because neighbours in a file look alike."""
    count = min(samples, len(features))
    places = [i * len(features) // count for i in range(count)]
    chosen = [objective.noised(features[place], place) for place in places]
    return [objective.collate(chosen[i : i + BATCH]) for i in range(0, count, BATCH)]


def linear_layers(model: PreTrainedModel) -> list[dict[str, nn.Module]]:
    """For each transformer layer, from the bottom up, its linear modules by their names in the model.

    Embeddings and heads are not among them: they are read by index, or small.
    """
    return [
        {
            f"{stack}.{index}.{name}": module
            for name, module in layer.named_modules()
            if isinstance(module, nn.Linear | Conv1D)
        }
        for stack, layers in layer_stacks(model)
        for index, layer in enumerate(layers.children())
    ]


def matrix(module: nn.Module) -> torch.Tensor:
    """A view of a linear module's weight as [out, in], whichever way it is stored."""
    weight = module.get_parameter("weight").data
    return weight.T if isinstance(module, Conv1D) else weight


def second_moments(
    model: PreTrainedModel, modules: Mapping[str, nn.Module], batches: Iterable[Batch], *, full: bool
) -> dict[str, torch.Tensor]:
    """Of each module the sum over tokens of x x^T, float64 [in, in]; without `full` its diagonal, [in].

    Padding does not count. Raises StageError where `full` moments would be of fewer tokens than a module has inputs.
    """
    found: dict[str, torch.Tensor] = {}
    tokens = dict.fromkeys(modules, 0)
    mask: torch.Tensor | None = None
    padded = layer_stacks(model)[0][0] if model.config.is_encoder_decoder else ""

    def add(name: str, inputs: torch.Tensor) -> None:
        rows = inputs.detach()
        if mask is not None and name.startswith(padded) and rows.shape[:2] == mask.shape:
            rows = rows[mask]
        rows = rows.reshape(-1, rows.shape[-1]).float()
        moment = (rows.T @ rows if full else rows.square().sum(0)).double()
        found[name] = found[name] + moment if name in found else moment
        tokens[name] += len(rows)

    with inputs_given_to(modules, add), torch.no_grad():
        model.train(False)
        for batch in batches:
            mask = batch["attention_mask"].bool() if "attention_mask" in batch else None
            model(**model_inputs(batch, model))
    for name, moment in found.items() if full else ():
        check_calibration(name, tokens[name], len(moment))
    return found


@contextmanager
def inputs_given_to(modules: Mapping[str, nn.Module], add: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """Within, every time one of the modules is called, `add` gets its name and its first input."""

    def hook(name: str) -> Any:
        return lambda module, inputs: add(name, inputs[0])

    hooks = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
