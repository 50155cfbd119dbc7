"""The stages that are skipped after a gate has refused.

A list may do without some candidates of a search: an `evaluate` of ten of which a gate let through seven is one of
seven. Such a gate has dropped a candidate, not refused a pipeline.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Set
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.pipeline.node import StageNode


def stopped_by(refused: Set[str], nodes: Iterable[StageNode]) -> dict[str, str]:
    """Each stage that does not run once the gates of `refused` have refused, and which of them it is for.

    nodes: the stages of a pipeline, each after those it needs.
    """
    stopped: dict[str, str] = {}
    gates = {name: name for name in refused}
    for node in nodes if refused else ():
        without = stopped | gates
        optional = [item.stage for item in node.inputs if item.optional]
        missing = [name for name in node.needs if name in without and name not in optional]
        if not missing and optional and all(name in without for name in optional):
            missing = optional
        if missing:
            stopped[node.name] = without[missing[0]]
    return stopped


def only_dropped(refused: Set[str], nodes: Collection[StageNode]) -> bool:
    """Whether the pipeline goes on without what these gates stop: for each, something takes the rest of a list."""
    stopped = stopped_by(refused, nodes)
    dropped = {
        stopped[item.stage]
        for node in nodes
        if node.name not in stopped
        for item in node.inputs
        if item.optional and item.stage in stopped
    }
    return refused <= dropped
