"""What the matrices of a model read: second moments of their inputs over calibration examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from infra.errors import StageError
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


def matrix(module: nn.Module) -> torch.Tensor:
    """A module's weight as [out, in], whichever way it is stored: a view of it.

    Of a convolution [out, height x width x in], a copy: channels lie side by side, which is how runtimes take n:m.
    """
    weight = module.get_parameter("weight").data
    if isinstance(module, nn.Conv2d):
        return weight.permute(0, 2, 3, 1).flatten(1)
    return weight.T if isinstance(module, Conv1D) else weight


def as_stored(module: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """What `matrix` made [out, in], in the shape of the module's weight again."""
    if isinstance(module, nn.Conv2d):
        _, channels, height, width = module.weight.shape
        return rows.reshape(-1, height, width, channels).permute(0, 3, 1, 2)
    return rows.T if isinstance(module, Conv1D) else rows


def second_moments(
    model: PreTrainedModel, modules: Mapping[str, nn.Module], batches: Iterable[Batch], *, full: bool
) -> dict[str, torch.Tensor]:
    """Of each module the sum over rows of x x^T, float64 [in, in]; without `full` its diagonal, [in].

    A row is what one output place reads: a token, or a patch of a convolution. Padding does not count. Raises
    StageError where `full` moments would be of fewer rows than a module has inputs, and for convolutions in groups.
    """
    found: dict[str, torch.Tensor] = {}
    counted = dict.fromkeys(modules, 0)
    mask: torch.Tensor | None = None
    padded = layer_stacks(model)[0][0] if model.config.is_encoder_decoder else ""

    def add(name: str, inputs: torch.Tensor) -> None:
        module, rows = modules[name], inputs.detach()
        if isinstance(module, nn.Conv2d):
            rows = patches(name, module, rows)
        elif mask is not None and name.startswith(padded) and rows.shape[:2] == mask.shape:
            rows = rows[mask]
        rows = rows.reshape(-1, rows.shape[-1]).float()
        moment = (rows.T @ rows if full else rows.square().sum(0)).double()
        found[name] = found[name] + moment if name in found else moment
        counted[name] += len(rows)

    with inputs_given_to(modules, add), torch.no_grad():
        model.train(False)
        for batch in batches:
            mask = batch["attention_mask"].bool() if "attention_mask" in batch else None
            model(**model_inputs(batch, model))
    for name, moment in found.items() if full else ():
        check_calibration(name, counted[name], len(moment))
    return found


def patches(name: str, module: nn.Conv2d, inputs: torch.Tensor) -> torch.Tensor:
    """What a convolution multiplies by its `matrix`: [B, C, H, W] -> [B, places, height x width x C].

    Raises StageError for one in groups, whose outputs read different channels.
    """
    if module.groups > 1:
        raise StageError(
            f"{name} is a convolution in {module.groups} groups, whose outputs do not read the same inputs",
            where="method",
            hint="`magnitude` prunes it; `wanda` and `sparsegpt` do not.",
        )
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    filled = functional.pad(inputs, module._reversed_padding_repeated_twice, mode)
    columns = functional.unfold(filled, module.kernel_size, module.dilation, 0, module.stride)
    size, channels = inputs.shape[:2]
    return columns.reshape(size, channels, -1, columns.shape[-1]).permute(0, 3, 2, 1).flatten(2)


@contextmanager
def inputs_given_to(
    modules: Mapping[str, nn.Module], add: Callable[[str, torch.Tensor], torch.Tensor | None]
) -> Iterator[None]:
    """Within, every time one of the modules is called, `add` gets its name and its first input.

    What `add` returns, if anything, the module reads instead.
    """

    def hook(name: str) -> Any:
        return lambda module, inputs: add(name, inputs[0])

    hooks = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
