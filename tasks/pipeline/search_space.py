"""What a search may choose from, and every way to choose: all of them, or those that a `Pick` takes one by one."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from infra.config_check import did_you_mean
from infra.yaml_source import Path
from tasks.release.gate.requirement import Requirement
from tasks.stage import StageParams, stages

CHOOSE, BETWEEN = "choose", "between"
DIGITS = 3
"""Decimals of a number drawn from a range: as many as its candidate's name has."""


class Screen(StageParams):
    """A test that drops weak candidates early, on other data than the final evaluation."""

    data: str = Field(description="Data with the split (`texts.validation`), not the split candidates are judged on.")
    require: list[Requirement] = Field(min_length=1, description="All must hold, against the model searched from.")


class Trials(StageParams):
    """Candidates drawn one after the other, each where those before it make quality and smallness likely."""

    data: str = Field(
        description="Data with the split by which a candidate's quality is measured (`texts.validation`)."
    )
    number: int = Field(20, ge=1, le=10_000, description="Candidates to try.")
    at_once: int = Field(4, ge=1, le=200, description="Candidates drawn together, knowing only those before them.")
    minutes: float | None = Field(
        None,
        gt=0,
        description="After so long none are drawn any more, and the best of those made is taken. None: ever.",
    )
    seed: int = Field(0, ge=0, description="Seed of the draws: the same results lead to the same draws.")


class Search(StageParams):
    """The model to start from, and the steps to try."""

    model: str = Field(description="Stage that makes the model to begin with.")
    steps: list[dict[str, Any]] = Field(min_length=1, description="Stages without their model, or `choose` among such.")
    screen: Screen | None = Field(None, description="Test that a model must pass to be worked on. None: none.")
    trials: Trials | None = Field(None, description="Try only some of the candidates. None: every combination.")

    @model_validator(mode="after")
    def _choices(self) -> Search:
        for step in self.steps:
            _check_choices({} if CHOOSE in step and len(step) == 1 else step)
            options = step.get(CHOOSE)
            for body in options.values() if isinstance(options, dict) else ():
                _check_choices(body)
        return self

    @model_validator(mode="after")
    def _finite(self) -> Search:
        if self.trials is None and any(_has_range(step) for step in self.steps):
            raise ValueError("a range (`between`) has no end of candidates: give `trials`, or `choose` from values")
        return self


@dataclass(frozen=True)
class Choice:
    """One way to take a step: what it is called, the stage's kind (None: no stage) and params, where they stand."""

    labels: tuple[str, ...]
    kind: str | None
    params: dict[str, Any]
    place: Path


Pick = Callable[[str, list[str] | tuple[float, float]], Any]
"""Takes one of a list, or a number of a range; the name says what for, the same in each draw."""
Fault = Callable[[Path, str], None]


@dataclass(frozen=True)
class Option:
    """One of a step's alternatives, with the choices inside it still open."""

    label: str
    kind: str | None
    params: dict[str, Any]
    place: Path

    def every(self) -> list[Choice]:
        named = (self.label,) if self.label and self.kind else ()
        return [Choice((*named, *labels), self.kind, params, self.place) for labels, params in _every(self.params)]

    def drawn(self, name: str, pick: Pick) -> Choice:
        labels, params = _drawn(self.params, f"{name}.{self.label}", "", pick)
        named = (self.label,) if self.label and self.kind else ()
        return Choice((*named, *labels), self.kind, params, self.place)


def options_of(step: dict[str, Any], path: Path, fault: Fault) -> list[Option]:
    """The alternatives of a step, which stands at `path`; `fault` gets what is wrong with them."""
    among = step.get(CHOOSE, {"": step})
    if not isinstance(among, dict) or len(step) != 1 or not among:
        fault(path, "a step is `{kind: params}` or `choose: {name: {kind: params}, other: null}`")
        return []
    found = []
    for label, body in among.items():
        place = (*path, CHOOSE, label) if CHOOSE in step else path
        kind = next(iter(body)) if isinstance(body, dict) and len(body) == 1 else None
        if body is None:
            found.append(Option(label, None, {}, place))
        elif kind in stages() and not isinstance(body[kind], dict | None):
            fault((*place, kind), "expected the fields of the stage, `{}` for none")
        elif kind in stages():
            found.append(Option(label, kind, body[kind] or {}, (*place, kind)))
        else:
            fault(place, f"a step is `{{kind: params}}`; {did_you_mean(str(kind), stages())}")
    return found


def every_path(steps: list[list[Option]]) -> Iterator[tuple[Choice, ...]]:
    """Every combination of choices, one of each step."""
    return itertools.product(*([choice for option in options for choice in option.every()] for options in steps))


def number_of_paths(steps: list[list[Option]]) -> int:
    """How many `every_path` would make."""
    return math.prod(sum(_count(option.params) for option in options) for options in steps)


def _count(value: Any) -> int:
    if not isinstance(value, dict):
        return 1
    if value.keys() == {CHOOSE}:
        return len(value[CHOOSE])
    return math.prod(_count(item) for item in value.values())


def drawn_path(steps: list[list[Option]], pick: Pick) -> tuple[Choice, ...]:
    """One combination of choices, each taken by `pick`."""
    path = []
    for i, options in enumerate(steps):
        labels = [option.label for option in options]
        taken = pick(f"step {i}", labels) if len(labels) > 1 else labels[0]
        path.append(options[labels.index(taken)].drawn(f"step {i}", pick))
    return tuple(path)


def _every(value: Any, field: str = "") -> list[tuple[tuple[str, ...], Any]]:
    """Every way to take the choices in `value`: what they are called, and the value without them."""
    if isinstance(value, dict) and value.keys() == {CHOOSE}:
        return [((label,), option) for label, option in _named(value[CHOOSE], field).items()]
    if isinstance(value, dict):
        parts = [[(key, one) for one in _every(item, key)] for key, item in value.items()]
        return [
            (tuple(label for _, (labels, _) in taken for label in labels), {key: plain for key, (_, plain) in taken})
            for taken in itertools.product(*parts)
        ]
    return [((), value)]


def _drawn(value: Any, name: str, field: str, pick: Pick) -> tuple[tuple[str, ...], Any]:
    """One way to take the choices in `value`."""
    if isinstance(value, dict) and value.keys() == {CHOOSE}:
        options = _named(value[CHOOSE], field)
        label = pick(name, list(options))
        return (label,), options[label]
    if isinstance(value, dict) and value.keys() == {BETWEEN}:
        low, high = value[BETWEEN]
        number = pick(name, (low, high))
        number = number if isinstance(number, int) else round(number, DIGITS)
        return (_label(field, number),), number
    if isinstance(value, dict):
        parts = {key: _drawn(item, f"{name}.{key}", key, pick) for key, item in value.items()}
        return tuple(label for labels, _ in parts.values() for label in labels), {k: v for k, (_, v) in parts.items()}
    return (), value


def _check_choices(value: Any) -> None:
    """Raises ValueError where something to choose from, or a range, is none."""
    if not isinstance(value, dict):
        return
    options, ends = value.get(CHOOSE), value.get(BETWEEN)
    if value.keys() == {CHOOSE} and (not isinstance(options, dict | list) or not options):
        raise ValueError("`choose` takes a list of values, or a mapping of names to values")
    if value.keys() == {BETWEEN} and not _is_range(ends):
        raise ValueError("`between` takes two numbers, the smaller one first, such as [0.4, 0.9]")
    for item in value.values():
        _check_choices(item)


def _is_range(ends: Any) -> bool:
    numbers = isinstance(ends, list) and all(type(end) in (int, float) and math.isfinite(end) for end in ends)
    return numbers and len(ends) == 2 and ends[0] < ends[1]


def _has_range(value: Any) -> bool:
    return isinstance(value, dict) and (BETWEEN in value or any(_has_range(item) for item in value.values()))


def _named(options: Any, field: str) -> dict[str, Any]:
    return options if isinstance(options, dict) else {_label(field, one): one for one in options}


def _label(field: str, value: Any) -> str:
    """`keep` 0.75 as keep075, `scheme` int4 as int4."""
    text = value if isinstance(value, str) else f"{field}{value}"
    return re.sub(r"[^a-z0-9_]", "", text.lower())
