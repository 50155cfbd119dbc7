"""Why a model has no ONNX graph, in words of the model: which operator, in which module.

The exporter's own errors speak of nodes of a graph that users have never seen. What was under way when it gave up
stands in its frames: the node that was translated, or the module that ran while the graph was captured.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

import torch

from infra.errors import StageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def refusal(error: BaseException, model: PreTrainedModel) -> StageError:
    """The error a user reads, of one that capturing or translating `model` ended with."""
    frames = list(_frames(error))
    nodes = [node for frame in frames for node in frame.f_locals.values() if isinstance(node, torch.fx.Node)]
    name = type(model).__name__
    if nodes:
        operator = str(nodes[-1].target)
        # The exporter sees the model as `model` of what it exports, which is not part of its layers' names.
        stack = [path.partition("model.")[2] for path, _ in nodes[-1].meta.get("nn_module_stack", {}).values()]
        return StageError(
            f"ONNX has no operator for `{operator}`, which {name} uses in {_place(stack[-1] if stack else '')}",
            where="model",
            hint="Replace that module by one of other operators, or ship the model as it is: `promote` takes it too.",
        )
    paths = {id(module): path for path, module in model.named_modules()}
    running = [
        paths[id(one)] for frame in frames if (one := frame.f_locals.get("self")) is not None and id(one) in paths
    ]
    first = str(error).strip().partition("\n")[0]
    return StageError(
        f"{name} cannot be captured as a graph, in {_place(running[-1] if running else '')}: {first}",
        where="model",
        hint="What it does there depends on the data or on a size, or runs outside of torch; see the log.",
    )


def _frames(error: BaseException) -> Iterator[FrameType]:
    """Of an error and what caused it, the outermost first."""
    seen: BaseException | None = error
    while seen is not None:
        yield from (frame for frame, _ in traceback.walk_tb(seen.__traceback__))
        seen = seen.__cause__ or seen.__context__


def _place(path: str) -> str:
    return f"`{path}`" if path else "the model itself"
