"""Reading what a run left behind, whatever state it is in.

A report is wanted most when something went wrong, so a reader here never raises on a missing, torn or malformed file:
it returns what is readable, and `Notes` collects what was not, for the reader of the report to see.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.errors import ForgelineError
from tasks.release.readable import is_number


@dataclass(frozen=True)
class Evidence:
    """One artifact as the report sees it: its manifest (JSON form) and, where fetched, its payload and records.

    history: every move of a release's ref, newest first, as {"at", "kind", "key", "by", "note"}.
    """

    manifest: dict[str, Any]
    payload: Path | None = None
    records: Path | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


Load = Callable[[dict[str, Any]], Evidence]
"""From an artifact reference {"kind", "key", "digest", "type"} to its evidence; may raise ForgelineError or OSError."""


@dataclass
class Curve:
    """A training stage's `records/train.jsonl`: (step, value) points in step order, one for each step.

    A resumed run writes some steps twice; the later line is the one whose weights lived on.
    """

    train: list[tuple[float, float]] = field(default_factory=list)
    validation: list[tuple[float, float]] = field(default_factory=list)
    speed: list[float] = field(default_factory=list)
    """Units of work a second, step by step."""
    unit: str = "tokens"
    peak_learning_rate: float | None = None


def gather(stages: list[dict[str, Any]], load: Load, notes: list[str]) -> dict[str, Evidence]:
    """Evidence by stage name, for every stage that has an artifact which can be read."""
    found: dict[str, Evidence] = {}
    for stage in stages:
        artifact = stage.get("artifact")
        if not artifact:
            continue
        try:
            found[str(stage["name"])] = load(artifact)
        except (ForgelineError, OSError) as error:
            what = error.what if isinstance(error, ForgelineError) else str(error)
            notes.append(f"{stage['name']}: its artifact could not be read: {what}")
    return found


def as_object(value: Any) -> dict[str, Any]:
    """`value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """`value` if it is a JSON array, else an empty one."""
    return value if isinstance(value, list) else []


def read_json(folder: Path | None, name: str, notes: list[str]) -> Any:
    """The parsed file, or None where it is missing or unreadable (then with a note)."""
    if folder is None or not (folder / name).is_file():
        return None
    try:
        return json.loads((folder / name).read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{name} could not be read: {error}")
        return None


def json_object(folder: Path | None, name: str, notes: list[str]) -> dict[str, Any]:
    """Like `read_json` for a file that must hold an object; anything else is empty."""
    return as_object(read_json(folder, name, notes))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a .jsonl file; a torn last line (the writer was killed) and non-objects are dropped."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_curve(records: Path | None) -> Curve | None:
    """The loss curve of a stage, or None if it did not train.

    Validation is read from `validation.jsonl` ({"step", "loss"}) and from `validation_loss` in the training lines.
    """
    if records is None or not (records / "train.jsonl").is_file():
        return None
    rows = _by_step(records / "train.jsonl")
    checks = _by_step(records / "validation.jsonl") if (records / "validation.jsonl").is_file() else {}
    validation = {step: row["validation_loss"] for step, row in rows.items() if is_number(row.get("validation_loss"))}
    validation |= {step: row["loss"] for step, row in checks.items() if is_number(row.get("loss"))}
    speed = next((name for row in rows.values() for name in row if name.endswith("_per_second")), "tokens_per_second")
    return Curve(
        train=[(step, row["loss"]) for step, row in sorted(rows.items()) if is_number(row.get("loss"))],
        validation=sorted(validation.items()),
        speed=[row[speed] for row in rows.values() if is_number(row.get(speed))],
        unit=speed.removesuffix("_per_second"),
        peak_learning_rate=max(
            (r["learning_rate"] for r in rows.values() if is_number(r.get("learning_rate"))), default=None
        ),
    )


def _by_step(path: Path) -> dict[float, dict[str, Any]]:
    found: dict[float, dict[str, Any]] = {}
    for row in read_lines(path):
        if is_number(row.get("step")):
            found[row["step"]] = {**found.get(row["step"], {}), **row}
    return found


def read_baselines(records: Path | None, notes: list[str]) -> tuple[str, list[tuple[str, float]]]:
    """(metric, [(name, value)]) of what a model must beat: {"metric", "values": {name: value}}, or just the values."""
    data = json_object(records, "baselines.json", notes)
    values = as_object(data.get("values")) if "values" in data else data
    return str(data.get("metric") or "loss"), [(str(n), v) for n, v in sorted(values.items()) if is_number(v)]
