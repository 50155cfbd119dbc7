"""Structured pruning of convolutional nets: whole channels leave, so that the model is smaller for every runtime.

A channel is written and read by several layers at once: over a residual connection by all blocks of a stage. Which ones
go together is what torch-pruning's graph of dependencies says (Fang et al., 2023). How many stay is what the family's
config can say, as many in all blocks of a stage, so that `from_pretrained` opens the result.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from infra.errors import StageError
from tasks.compression.pruning.calibration import Batch
from tasks.compression.pruning.gates import gate_slopes
from tasks.models.inputs import model_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from tasks.objective import Objective

WIDTHS = {
    "convnext": ("hidden_sizes",),
    "convnextv2": ("hidden_sizes",),
    "mobilenet_v1": ("depth_multiplier",),
    "mobilenet_v2": ("depth_multiplier",),
    "resnet": ("embedding_size", "hidden_sizes"),
}
"""Families, and the fields of their configs that say how many channels there are: numbers of them, or a factor."""
MULTIPLE = 8


@dataclass(frozen=True)
class Channels:
    """Channels that several layers share. writer: one of the layers that make them, by name.

    readers: of each layer that multiplies them by a matrix, which of its inputs is which channel.
    """

    writer: str
    count: int
    readers: dict[str, tuple[list[int], list[int]]]


def without_channels(
    model: PreTrainedModel, batches: Sequence[Batch], objective: Objective, keep: float
) -> PreTrainedModel:
    """A new model with the most important share `keep` of each stage's channels, in steps of 8 or as the family has it.

    Raises StageError for a family whose config cannot say what is left, and if nothing would go.
    """
    empty = type(model)(narrower(model.config, keep)).train(False)
    inputs = {name: value[:2] for name, value in model_inputs(batches[0], model).items()}
    return with_channels(model, empty, inputs, channel_importance(model, batches, objective))


def narrower(given: PreTrainedConfig, keep: float) -> PreTrainedConfig:
    """The config of the same network with about this share of its channels."""
    if given.model_type not in WIDTHS:
        raise StageError(
            f"channels of {given.model_type} cannot go: its config does not say how many there are",
            where="method",
            hint=f"`channels` knows {', '.join(WIDTHS)}. `ffn_width` and `layers` are for transformers, "
            "`magnitude` is for every model.",
        )
    config = copy.deepcopy(given)
    for field in WIDTHS[given.model_type]:
        value = getattr(given, field)
        if isinstance(value, float):
            setattr(config, field, keep * value)
        else:
            setattr(config, field, [_share(n, keep) for n in value] if isinstance(value, list) else _share(value, keep))
    return config


def _share(count: int, keep: float) -> int:
    return min(count, max(MULTIPLE, round(keep * count / MULTIPLE) * MULTIPLE))


def channel_importance(
    model: PreTrainedModel, batches: Sequence[Batch], objective: Objective
) -> dict[str, torch.Tensor]:
    """By writer [channels]: how far the loss would move without each channel (`gates.py`), for all its readers."""
    inputs = {name: value[:2] for name, value in model_inputs(batches[0], model).items()}
    groups = [group for group in _groups(_graph(model, inputs), model) if group.readers]
    scores = {group.writer: torch.zeros(group.count, dtype=torch.float64) for group in groups}
    readers = sorted({name for group in groups for name in group.readers})
    for slopes in gate_slopes(model, batches, objective, readers):
        for group in groups:
            total = torch.zeros(len(next(iter(slopes.values()))), group.count, dtype=torch.float64)
            for name, (places, channels) in group.readers.items():
                total.index_add_(1, torch.tensor(channels), slopes[name][:, places])
            scores[group.writer] += total.square().sum(0)
    return scores


def with_channels(
    model: PreTrainedModel,
    empty: PreTrainedModel,
    inputs: Mapping[str, torch.Tensor],
    importance: Mapping[str, torch.Tensor],
) -> PreTrainedModel:
    """The model's weights in `empty`, the same network with fewer channels: the most important ones, in their order."""
    shapes = {name: value.shape for name, value in empty.state_dict().items()}
    wrong = sorted(shapes.keys() ^ model.state_dict().keys())
    cut = copy.deepcopy(model)
    graph = _graph(cut, inputs)
    for writer, score in importance.items() if not wrong else ():
        module, count = cut.get_submodule(writer), shapes[f"{writer}.weight"][0]
        gone = torch.sort(torch.argsort(score, descending=True, stable=True)[count:]).values.tolist()
        if gone:
            graph.get_pruning_group(module, graph.get_pruner_of_module(module).prune_out_channels, gone).prune()
    state = cut.state_dict()
    wrong = wrong or [name for name, shape in shapes.items() if state[name].shape != shape]
    if wrong:
        raise StageError(
            f"the config of {type(model).__name__} cannot say what would be left: {wrong[0]}",
            where="keep",
            hint="Another `keep` may do, at which parts of different widths do not become equally wide.",
        )
    if all(value.shape == shapes[name] for name, value in model.state_dict().items()):
        raise StageError(
            "every channel would stay", where="keep", hint=f"Widths go in steps of {MULTIPLE}: use a lower one."
        )
    empty.load_state_dict(state)
    return empty


def _graph(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> Any:
    """Which layers' channels go together, as torch-pruning reads it off a forward pass."""
    try:
        import torch_pruning
    except ImportError as error:
        raise StageError(
            "torch-pruning is not installed", where="method", hint="pip install 'forgeline[vision]'."
        ) from error
    model.train(False)
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # that parameters outside of layers go by their last axis, which is right
        return torch_pruning.DependencyGraph().build_dependency(model, example_inputs=dict(inputs), verbose=False)


def _groups(graph: Any, model: PreTrainedModel) -> Iterator[Channels]:
    """All groups of channels, from the top down."""
    names = {module: name for name, module in model.named_modules()}
    for group in graph.get_all_groups():
        readers = {}
        for item in group.items:
            module, reads = item.dep.target.module, item.dep.handler
            by_matrix = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
            if by_matrix and reads == graph.get_pruner_of_module(module).prune_in_channels:
                readers[names[module]] = (list(item.idxs), list(item.root_idxs))
        yield Channels(names[group[0].dep.target.module], len(group[0].idxs), readers)
