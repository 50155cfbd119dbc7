"""A declared space of ways to make a model smaller, written out as ordinary stages before the pipeline is checked.

    small:
      search:
        model: teacher
        steps:
          - choose: {whole: null, half: {distill: {data: texts, layers: 3}}}
          - choose: {lean: {prune: {data: texts, keep: {choose: [0.75, 0.5]}}}, wide: null}
          - export: {}
          - choose: {int8: {quantize: {}}, int4: {quantize: {scheme: int4}}}
        screen: {data: texts.validation, require: [{metric: f1_macro, max_drop: 0.05}]}
    scores:
      evaluate: {models: [teacher, small], data: texts.test}       # `small` stands for all its candidates

A step is a stage without its model, which is what the step before it left, or a `choose` among such (null: leave the
model as it is). Anywhere in a stage's params `choose: [...]` stands for one of its values. Each combination is a
candidate, called by what was chosen: `small-half-lean-keep05-int8`. What candidates share they share by name, so it is
made once. With `screen` each model that another step will work on is first held against `model` on that data; where
the gate says no, none of what was to be made of it is.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field

from infra.config_check import check, did_you_mean
from infra.errors import Problem
from infra.yaml_source import Document, Path, dotted
from tasks.release.requirements import Requirement
from tasks.stage import Input, StageParams, stages
from tasks.stopped import AFTER

SEARCH, CHOOSE = "search", "choose"
MOST = 200
"""Candidates beyond which a space is taken for a mistake."""


class Screen(StageParams):
    """Whether a model is worth going on with, on data that is not what decides in the end."""

    data: str = Field(
        description="Data with the split (`texts.validation`); not the split the candidates are judged on."
    )
    require: list[Requirement] = Field(
        min_length=1, description="All of these must hold, against the model searched from."
    )


class Search(StageParams):
    """From which model, by which steps."""

    model: str = Field(description="Stage that makes the model to begin with.")
    steps: list[dict[str, Any]] = Field(min_length=1, description="Stages without their model, or `choose` among such.")
    screen: Screen | None = Field(None, description="Test that a model must pass to be worked on. None: none.")


@dataclass(frozen=True)
class _Branch:
    """A model on its way: the stage that makes it, what was chosen for it, the gate it has to pass."""

    model: str
    chosen: tuple[str, ...] = ()
    gate: str | None = None


@dataclass(frozen=True)
class _Choice:
    """One way to take a step: what it is called, the stage's kind (None: no stage) and params, where they stand."""

    labels: tuple[str, ...]
    kind: str | None
    params: dict[str, Any]
    place: Path


def write_out(document: Document, problems: list[Problem]) -> list[Writing]:
    """Replace every `search` among the stages of `document` with the stages it stands for; faults go to `problems`.

    One with a fault stays where it is.
    """
    given = document.data.get("stages")
    if not isinstance(given, dict):
        return []
    searches: list[Writing] = []
    written: dict[str, Any] = {}
    for name, body in given.items():
        if not isinstance(body, dict) or SEARCH not in body:
            written[name] = body
            continue
        before = len(problems)
        space = check(Search, body[SEARCH], ("stages", name, SEARCH), document, problems)
        made = Writing(name, space, given, document, problems) if space and len(body) == 1 else None
        if len(body) > 1:
            path = ("stages", name)
            problems.append(Problem(document.place(path), dotted(path), "a search stands alone, without another kind"))
        if made is None or len(problems) > before:
            written[name] = body
            continue
        written |= made.stages
        searches.append(made)
        _same_execution(document, name, made.stages)
    for body in written.values() if searches else ():
        _name_candidates(body, {search.name: search.candidates for search in searches})
    document.data["stages"] = written
    return searches


class Writing:
    """The stages of one search, and the names of its candidates."""

    def __init__(
        self, name: str, space: Search, given: dict[str, Any], document: Document, problems: list[Problem]
    ) -> None:
        self.name, self.space, self.document, self.problems = name, space, document, problems
        self.stages: dict[str, Any] = {}
        self.candidates: list[str] = []
        root = ("stages", name, SEARCH)
        if space.model not in given and not space.model.startswith("ref:"):
            self._fault((*root, "model"), f"no stage named {space.model!r}; {did_you_mean(space.model, given)}")
        branches = [_Branch(space.model)]
        for i, step in enumerate(space.steps):
            choices = list(self._choices(step, (*root, "steps", i)))
            if len(branches) * len(choices) > MOST:
                self._fault((*root, "steps", i), f"more than {MOST} candidates; take some choices out")
                return
            last = i == len(space.steps) - 1
            branches = [self._take(branch, choice, last=last) for branch in branches for choice in choices]
        self.candidates = list(dict.fromkeys(branch.model for branch in branches if branch.model != space.model))
        for taken in sorted(self.stages.keys() & given.keys()):
            self._fault(root, f"writes a stage {taken!r}, but there is one of that name; call one of them otherwise")

    def _choices(self, step: dict[str, Any], path: Path) -> Iterator[_Choice]:
        options = step.get(CHOOSE, {"": step})
        if not isinstance(options, dict) or len(step) != 1 or not options:
            self._fault(path, "a step is `{kind: params}` or `choose: {name: {kind: params}, other: null}`")
            return
        for label, body in options.items():
            place = (*path, CHOOSE, label) if CHOOSE in step else path
            named = (label,) if label else ()
            if body is None:
                yield _Choice((), None, {}, place)
                continue
            kind = next(iter(body)) if isinstance(body, dict) and len(body) == 1 else None
            if kind not in stages():
                self._fault(place, f"a step is `{{kind: params}}`; {did_you_mean(str(kind), stages())}")
                continue
            for labels, params in _combinations(body[kind] or {}):
                yield _Choice((*named, *labels), kind, params, (*place, kind))

    def _take(self, branch: _Branch, choice: _Choice, *, last: bool) -> _Branch:
        """The branch with the choice taken, its stage written."""
        if choice.kind is None:
            return branch
        chosen = (*branch.chosen, *choice.labels)
        name = "-".join((self.name, *chosen, *(() if choice.labels else (choice.kind,))))
        field = _model_field(choice.kind, choice.params)
        if field is None:
            self._fault(choice.place, "works on no model, so it is no step of a search")
        elif name in self.stages:
            self._fault(choice.place, f"two candidates would be called {name!r}; call their choices otherwise")
        else:
            gates = {AFTER: branch.gate} if branch.gate else {}
            self.stages[name] = {choice.kind: {field: branch.model, **choice.params}, **gates}
            self._stands((name, choice.kind), choice.place)
        gate = None
        if self.space.screen and not last and stages()[choice.kind].makes == "model":
            gate = self._screened(name, self.space.screen)
        return replace(branch, model=name, chosen=chosen, gate=gate)

    def _screened(self, name: str, screen: Screen) -> str:
        scores, gate = f"{name}-screen", f"{name}-passes"
        require = [requirement.model_dump(exclude_none=True) for requirement in screen.require]
        self.stages[scores] = {"evaluate": {"models": [self.space.model, name], "data": screen.data}}
        self.stages[gate] = {
            "gate": {"scores": scores, "candidate": name, "against": self.space.model, "require": require}
        }
        for stage in (scores, gate):
            self._stands((stage,), ("stages", self.name, SEARCH, "screen"))
        return gate

    def _stands(self, stage: Path, where: Path) -> None:
        """Faults of a written stage are told where its step stands in the file."""
        places = self.document.places
        below = {path[len(where) :]: place for path, place in places.items() if path[: len(where)] == where}
        places.update({("stages", *stage, *rest): place for rest, place in below.items()})

    def _fault(self, path: Path, message: str) -> None:
        problem = Problem(self.document.place(path), dotted(path), message)
        if problem not in self.problems:
            self.problems.append(problem)


def _combinations(value: Any, field: str = "") -> list[tuple[tuple[str, ...], Any]]:
    """Every way to take the choices in `value`: what they are called, and the value without them."""
    if isinstance(value, dict) and value.keys() == {CHOOSE}:
        options = value[CHOOSE]
        named = options.items() if isinstance(options, dict) else ((_label(field, one), one) for one in options)
        return [((label,), option) for label, option in named]
    if isinstance(value, dict):
        parts = [[(key, one) for one in _combinations(item, key)] for key, item in value.items()]
        return [
            (tuple(label for _, (labels, _) in taken for label in labels), {key: plain for key, (_, plain) in taken})
            for taken in itertools.product(*parts)
        ]
    return [((), value)]


def _label(field: str, value: Any) -> str:
    """`keep` 0.75 as keep075, `scheme` int4 as int4."""
    text = value if isinstance(value, str) else f"{field}{value}"
    return re.sub(r"[^a-z0-9_]", "", text.lower())


def _model_field(kind: str, params: dict[str, Any]) -> str | None:
    """The first input of a stage that takes a model and is not given: there the search puts its own."""
    for name, info in stages()[kind].params.model_fields.items():
        marker = next((m for m in info.metadata if isinstance(m, Input)), None)
        if marker and name not in params and {"model", "onnx"} & {*marker.types}:
            return name
    return None


def _name_candidates(body: Any, groups: dict[str, list[str]]) -> None:
    """In a stage's lists of inputs, the candidates of a search instead of its name."""
    for kind, params in body.items() if isinstance(body, dict) else ():
        if kind not in stages() or not isinstance(params, dict):
            continue
        for name, info in stages()[kind].params.model_fields.items():
            value = params.get(name)
            if isinstance(value, list) and any(isinstance(m, Input) for m in info.metadata):
                params[name] = [model for given in value for model in groups.get(given, [given])]


def _same_execution(document: Document, name: str, written: dict[str, Any]) -> None:
    """What `execution` says of a search holds for each of its stages."""
    execution = document.data.get("execution")
    if isinstance(execution, dict) and name in execution:
        own = execution.pop(name)
        for stage in written:
            execution.setdefault(stage, own)
            document.places.setdefault(("execution", stage), document.place(("execution", name)))
