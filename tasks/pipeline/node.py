"""A stage of a pipeline, checked: its kind, its params, and what it waits for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from infra.execution import Execution
from tasks.stage import InputField, Stage, StageParams

AFTER = "after"
"""Beside its kind a stage may name gates without whose consent it does not run; no part of what it makes."""


@dataclass(frozen=True)
class StageNode:
    """One stage of a pipeline, checked. `needs` are the stages it waits for: its inputs', then the gates of `after`."""

    name: str
    stage: Stage[Any]
    params: StageParams
    execution: Execution
    inputs: tuple[InputField, ...]
    needs: tuple[str, ...]
    after: tuple[str, ...] = ()


def needs_of(inputs: Iterable[InputField], after: Iterable[str]) -> tuple[str, ...]:
    """The stages to wait for: those named, also where a ref may take their place, and gates."""
    named = [item.fallback if item.ref else item.stage for item in inputs]
    return tuple(dict.fromkeys([*(name for name in named if name), *after]))
