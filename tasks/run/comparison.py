"""Two runs side by side: which params of each stage differ, how its metrics moved, how long it took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from infra.artifacts import Manifest

Load = Callable[[dict[str, Any]], Manifest | None]
"""From the `artifact` of a run record's stage to its manifest."""
Pair = tuple[Any, Any]


@dataclass(frozen=True)
class StageComparison:
    """One stage of two runs; None on the side of a run that does not have it. seconds: in the run, 0 if reused.

    params that differ, and all metrics, where both runs have a result.
    """

    name: str
    actions: tuple[str | None, str | None]
    seconds: tuple[float | None, float | None]
    same_artifact: bool
    params: dict[str, Pair] = field(default_factory=dict)
    metrics: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        metrics = {n: {"values": list(pair), "difference": difference(pair)} for n, pair in self.metrics.items()}
        return {
            "name": self.name,
            "actions": list(self.actions),
            "seconds": list(self.seconds),
            "same_artifact": self.same_artifact,
            "params": {name: list(pair) for name, pair in self.params.items()},
            "metrics": metrics,
        }


def compare_runs(one: dict[str, Any], other: dict[str, Any], load: Load) -> list[StageComparison]:
    """Every stage that either run record has, in the order of the first and then of the second."""
    sides = [{entry["name"]: entry for entry in record["stages"]} for record in (one, other)]
    return [_stage(name, sides[0].get(name), sides[1].get(name), load) for name in {**sides[0], **sides[1]}]


def _stage(name: str, one: dict[str, Any] | None, other: dict[str, Any] | None, load: Load) -> StageComparison:
    artifacts = [entry["artifact"] if entry else None for entry in (one, other)]
    manifests = [load(artifact) if artifact else None for artifact in artifacts]
    params = [dict(flat(m.identity["params"])) if m else {} for m in manifests]
    metrics = [dict(m.metrics) if m else {} for m in manifests]
    both = all(manifests)
    return StageComparison(
        name,
        (one["action"] if one else None, other["action"] if other else None),
        (one["seconds"] if one else None, other["seconds"] if other else None),
        bool(artifacts[0] and artifacts[0] == artifacts[1]),
        {path: pair for path, pair in _pairs(*params).items() if pair[0] != pair[1]} if both else {},
        _pairs(*metrics) if both else {},
    )


def _pairs(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Pair]:
    return {name: (one.get(name), other.get(name)) for name in {**one, **other}}


def flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """The leaves of plain data by dotted path; lists are leaves."""
    if not isinstance(value, dict) or not value:
        return [(path, value)]
    return [leaf for name, inner in value.items() for leaf in flat(inner, f"{path}.{name}" if path else str(name))]


def difference(pair: tuple[float | None, float | None]) -> float | None:
    """The second less the first, where both are there."""
    return None if pair[0] is None or pair[1] is None else pair[1] - pair[0]
