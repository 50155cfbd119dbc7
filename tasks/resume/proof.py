"""Is a training run that was cut short and resumed the same as one that was not? Compares what two runs of it left.

    comparison = compare(Trained.read(store, one), Trained.read(store, other), tolerance=0.0)
    comparison.faults        # empty: the resumed run is as good as the undisturbed one

Always the same: the steps, each exactly once; the learning rate and the number of tokens of each; every file that ships
beside the weights. With tolerance 0 the losses and the weights are the same bits. Else the loss of each step may differ
by that share of it, and the weights by that share of their L2 norm: the order of float additions changes with the
number of ranks, and on a GPU from run to run.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.artifacts import Manifest
from infra.store import Store

TOLERANCE = 1e-3
TOLERANCE_16_BIT = 1e-2
"""A 16-bit float has 8 or 11 significant bits: one rounding is up to 4e-3 of the value."""
SHOWN = 5


@dataclass(frozen=True)
class Trained:
    """What one training run left: the files it ships with their sha256, and one entry a step."""

    folder: Path
    files: dict[str, str]
    steps: list[dict[str, Any]]

    @classmethod
    def read(cls, store: Store, manifest: Manifest) -> Trained:
        """Fetch, and so verify, what was committed."""
        records = store.fetch_records(manifest)
        journal = records / "train.jsonl" if records else None
        lines = journal.read_text(encoding="utf-8").splitlines() if journal and journal.exists() else []
        files = {entry.path: entry.sha256 for entry in manifest.payload}
        return cls(store.fetch(manifest), files, [json.loads(line) for line in lines])


@dataclass(frozen=True)
class Comparison:
    """How far a resumed run is from an undisturbed one; `faults` says what may not be so."""

    bitwise_equal: bool
    """The files that ship, and the loss of every step."""
    loss_difference: float | None
    """Largest difference of a step's loss, as a share of it. None here and below: nothing to compare, or no number."""
    weight_difference: float | None
    """L2 norm of the weights' difference, as a share of the weights' norm."""
    largest_weight_difference: float | None
    """Largest difference of one weight."""
    tolerance: float
    faults: list[str]


def compare(undisturbed: Trained, resumed: Trained, *, tolerance: float) -> Comparison:
    """Compare two runs of one training. tolerance: 0 if they must be the same bits."""
    faults = _step_faults(undisturbed.steps, resumed.steps)
    pairs = _pairs(undisturbed.steps, resumed.steps)
    for name, value_of in (("learning rate", lambda e: e.get("learning_rate")), ("number of tokens", _tokens)):
        differing = [step for step, one, other in pairs if value_of(one) != value_of(other)]
        if differing:
            faults.append(f"another {name} at step {_listed(differing)}")
    losses = [(step, _relative(one["loss"], other["loss"])) for step, one, other in pairs]
    differing = [step for step, difference in losses if not difference <= tolerance]
    if differing:
        faults.append(f"another loss at step {_listed(differing)}")

    changed = sorted(
        name
        for name in undisturbed.files.keys() | resumed.files.keys()
        if undisturbed.files.get(name) != resumed.files.get(name)
    )
    others = [name for name in changed if not name.endswith(".safetensors")]
    if others:
        faults.append(f"other bytes in {', '.join(others)}")
    relative, largest = 0.0, 0.0
    if len(changed) > len(others):
        relative, largest = _weight_difference(undisturbed, resumed)
        if not relative <= tolerance or tolerance == 0:
            faults.append(f"other weights: {relative:.2g} of their norm, one by {largest:.2g}")
    return Comparison(
        bitwise_equal=not changed and bool(pairs) and all(difference == 0 for _, difference in losses),
        loss_difference=_number(max((difference for _, difference in losses), default=math.inf)),
        weight_difference=_number(relative),
        largest_weight_difference=_number(largest),
        tolerance=tolerance,
        faults=faults,
    )


def _step_faults(undisturbed: Sequence[dict[str, Any]], resumed: Sequence[dict[str, Any]]) -> list[str]:
    if not undisturbed:
        return ["the undisturbed run recorded no step in records/train.jsonl"]
    expected, found = {entry["step"] for entry in undisturbed}, Counter(entry["step"] for entry in resumed)
    wrong = (
        ("not recorded", expected - found.keys()),
        ("recorded more than once", {step for step, count in found.items() if count > 1}),
        ("recorded, which the undisturbed run does not have", found.keys() - expected),
    )
    return [f"step {_listed(steps)} {what}" for what, steps in wrong if steps]


def _pairs(
    undisturbed: Sequence[dict[str, Any]], resumed: Sequence[dict[str, Any]]
) -> list[tuple[int, dict[str, Any], dict[str, Any]]]:
    """(step, undisturbed entry, resumed entry) of every line of the resumed run, a repeated step twice."""
    known = {entry["step"]: entry for entry in undisturbed}
    return [(entry["step"], known[entry["step"]], entry) for entry in resumed if entry["step"] in known]


def _tokens(entry: dict[str, Any]) -> int | None:
    if "tokens" in entry:
        return int(entry["tokens"])
    if "tokens_per_second" in entry:
        return round(float(entry["tokens_per_second"]) * float(entry["seconds"]))
    return None


def _relative(one: float, other: float) -> float:
    if one == other:
        return 0.0
    difference = abs(one - other) / max(abs(one), 1e-12)
    return difference if math.isfinite(difference) else math.inf


def _weight_difference(undisturbed: Trained, resumed: Trained) -> tuple[float, float]:
    """(L2 norm of the difference as a share of the weights' norm, largest difference); infinite if shapes differ."""
    import numpy as np
    from safetensors import safe_open

    def opened(run: Trained) -> dict[str, Any]:
        files = [run.folder / name for name in run.files if name.endswith(".safetensors")]
        readers = [safe_open(file, framework="numpy") for file in files]
        return {name: reader for reader in readers for name in reader.keys()}  # type: ignore[no-untyped-call]  # noqa: SIM118

    here, there = opened(undisturbed), opened(resumed)
    if here.keys() != there.keys():
        return math.inf, math.inf
    norm = distance = largest = 0.0
    for name, reader in here.items():
        one = np.asarray(reader.get_tensor(name), dtype=np.float64)
        other = np.asarray(there[name].get_tensor(name), dtype=np.float64)
        if one.shape != other.shape:
            return math.inf, math.inf
        difference = np.abs(one - other)
        largest = max(largest, float(difference.max(initial=0.0)))
        norm, distance = norm + float((one**2).sum()), distance + float((difference**2).sum())
    relative = math.sqrt(distance / norm) if norm else (math.inf if distance else 0.0)
    return (relative, largest) if math.isfinite(relative) else (math.inf, math.inf)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _listed(steps: Sequence[int] | set[int]) -> str:
    ordered = sorted(steps)
    rest = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return ", ".join(map(str, ordered[:SHOWN])) + rest
