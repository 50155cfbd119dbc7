"""`STAGE.SPLIT` in a pipeline file: whether that stage's artifact can have such a split, known before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from infra.config_check import did_you_mean
from tasks.data.selection.splitting import SPLITS
from tasks.stage import InputField

if TYPE_CHECKING:
    from tasks.pipeline.node import StageNode

WITH_SPLITS = ("dataset", "tokens")


def split_fault(item: InputField, nodes: Mapping[str, StageNode]) -> str | None:
    """What is wrong with the split that an input names, or None."""
    if item.split is None or item.stage not in nodes:
        return None
    node = nodes[item.stage]
    if node.stage.makes not in WITH_SPLITS:
        return f"{item.stage!r} makes a {node.stage.makes}, which has no splits; write {item.stage}"
    if item.split not in SPLITS:
        return f"no split {item.split!r} in {item.stage!r}; {did_you_mean(item.split, SPLITS)}"
    there = _splits(node, nodes)
    if there is not None and item.split not in there:
        return f"{item.text!r} is always empty, as {item.stage!r} is made; it has: {', '.join(there)}"
    return None


def _splits(node: StageNode, nodes: Mapping[str, StageNode], seen: tuple[str, ...] = ()) -> Sequence[str] | None:
    """The splits that a stage's artifact can have rows in; None where this file does not say."""
    if node.stage.splits is not None:
        return node.stage.splits(node.params)
    given = next((item for item in node.inputs if item.field == "data"), None)
    if given is None or given.stage not in nodes or given.stage in seen:
        return None
    # Tokens are of the split named; a dataset made of another has its other splits as well.
    if given.split is not None and node.stage.makes == "tokens":
        return [given.split]
    return _splits(nodes[given.stage], nodes, (*seen, node.name))
