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
made once. With `screen` each model that another step will work on is first compared with `model` on that data; where
the gate refuses, none of what was to be made of it is. With `trials` only some candidates are tried, and numbers may
come from a range (`keep: {between: [0.4, 0.9]}`): see `tasks/pipeline/search_trials.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from infra.config_check import check, did_you_mean
from infra.errors import Problem
from infra.yaml_source import Document, Path, dotted
from tasks.pipeline.node import AFTER
from tasks.pipeline.search_space import (
    Choice,
    Option,
    Pick,
    Screen,
    Search,
    drawn_path,
    every_path,
    number_of_paths,
    options_of,
)
from tasks.pipeline.search_trials import Result, draw
from tasks.stage import Input, stages

SEARCH = "search"
MOST, MOST_PATHS = 200, 10_000
"""Candidates, and ways to choose (of which some are one candidate), beyond which a space is taken for a mistake."""


@dataclass(frozen=True)
class Results:
    """What is known of candidates that were tried: search -> candidate -> result.

    closed: no more are drawn; candidates are those with a result.
    """

    of: Mapping[str, Mapping[str, Result]] = field(default_factory=dict)
    closed: bool = False


def write_out(document: Document, problems: list[Problem], results: Results) -> list[Writing]:
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
        if len(body) > 1:
            path = ("stages", name)
            problems.append(Problem(document.place(path), dotted(path), "a search stands alone, without another kind"))
        made = Writing(name, space, given, document, problems, results) if space and len(body) == 1 else None
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
    """The stages of one search, and the names of its candidates.

    trials: of a search that tries some, the evaluation of each candidate. undecided: more are to be drawn once those
    have a result.
    """

    def __init__(
        self,
        name: str,
        space: Search,
        given: dict[str, Any],
        document: Document,
        problems: list[Problem],
        results: Results,
    ) -> None:
        self.name, self.space, self.document, self.problems = name, space, document, problems
        self.stages: dict[str, Any] = {}
        self.candidates: list[str] = []
        self.trials: dict[str, str] = {}
        self.undecided = False
        root = ("stages", name, SEARCH)
        if space.model not in given and not space.model.startswith("ref:"):
            self._fault((*root, "model"), f"no stage named {space.model!r}; {did_you_mean(space.model, given)}")
        steps = [options_of(step, (*root, "steps", i), self._fault) for i, step in enumerate(space.steps)]
        if space.trials is None and all(steps) and number_of_paths(steps) > MOST_PATHS:
            self._fault((*root, "steps"), f"more than {MOST} candidates; take choices out, or give `trials`")
            return
        for path in self._paths(steps, results) if all(steps) else ():
            if len(self.candidates) == MOST:
                self._fault((*root, "steps"), f"more than {MOST} candidates; take choices out, or give `trials`")
                break
            candidate = self._write(path)
            if candidate and candidate not in self.candidates:
                self.candidates.append(candidate)
        if space.trials:
            for candidate in self.candidates:
                self.trials[candidate] = f"{candidate}-trial"
                trial = {"evaluate": {"models": [candidate], "data": space.trials.data}}
                self._add(self.trials[candidate], trial, (*root, "trials"))
        for taken in sorted(self.stages.keys() & given.keys()):
            self._fault(root, f"writes a stage {taken!r}, but there is one of that name; call one of them otherwise")

    def _paths(self, steps: list[list[Option]], results: Results) -> Iterable[tuple[Choice, ...]]:
        if self.space.trials is None:
            return every_path(steps)
        known = results.of.get(self.name, {})

        def one(pick: Pick) -> tuple[Choice, ...]:
            return drawn_path(steps, pick)

        def called(path: tuple[Choice, ...]) -> str | None:
            names = self._named(path)
            return names[-1][1] if names else None

        paths, complete = draw(self.space.trials, known, one, called)
        self.undecided = not complete and not results.closed
        return [path for path in paths if called(path) in known] if results.closed else paths

    def _named(self, path: tuple[Choice, ...]) -> list[tuple[Choice, str]]:
        """The stages of a path: the choice each comes of, and what it is called by that and those before."""
        labels: list[str] = []
        named = []
        for choice in path:
            if choice.kind is not None:
                labels += choice.labels
                named.append((choice, "-".join((self.name, *labels, *(() if choice.labels else (choice.kind,))))))
        return named

    def _write(self, path: tuple[Choice, ...]) -> str | None:
        """Write the stages of a path. Returns the last one's name, the candidate's; None if there is none."""
        model, gate = self.space.model, None
        for choice, name in self._named(path):
            assert choice.kind is not None
            if not isinstance(choice.params, dict):
                self._fault(choice.place, "expected the fields of the stage, `{}` for none")
                return None
            field = _model_field(choice.kind, choice.params)
            if field is None:
                self._fault(choice.place, "works on no model, so it is no step of a search")
                return None
            self._add(name, {choice.kind: {field: model, **choice.params}, **_waiting_for(gate)}, choice.place)
            last = choice.place[3:5] == ("steps", len(self.space.steps) - 1)
            screened = self.space.screen and not last and stages()[choice.kind].makes == "model"
            gate = self._screened(name, self.space.screen, gate) if screened and self.space.screen else None
            model = name
        return None if model == self.space.model else model

    def _screened(self, name: str, screen: Screen, before: str | None) -> str:
        """Write the test of a model. Returns its gate's name."""
        scores, gate, path = f"{name}-screen", f"{name}-passes", ("stages", self.name, SEARCH, "screen")
        models = {"models": [self.space.model, name], "data": screen.data}
        require = [requirement.model_dump(exclude_none=True) for requirement in screen.require]
        verdict = {"scores": scores, "candidate": name, "against": self.space.model, "require": require}
        self._add(scores, {"evaluate": models, **_waiting_for(before)}, path)
        self._add(gate, {"gate": verdict}, path)
        return gate

    def _add(self, name: str, body: dict[str, Any], place: Path) -> None:
        """A stage of the search; what is wrong with it is reported at `place` in the file."""
        if name in self.stages and self.stages[name] != body:
            self._fault(place, f"two candidates would be called {name!r}; call their choices otherwise")
            return
        self.stages[name] = body
        places = self.document.places
        below = {path[len(place) :]: line for path, line in places.items() if path[: len(place)] == place}
        root = ("stages", name, next(iter(body)))
        places.update({(*root, *rest): line for rest, line in below.items()})

    def _fault(self, path: Path, message: str) -> None:
        problem = Problem(self.document.place(path), dotted(path), message)
        if problem not in self.problems:
            self.problems.append(problem)


def _waiting_for(gate: str | None) -> dict[str, str]:
    return {AFTER: gate} if gate else {}


def _model_field(kind: str, params: dict[str, Any]) -> str | None:
    """The first input of a stage that takes a model and is not given: there the search puts its own."""
    name: str
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
                named = [groups.get(given, [given]) if isinstance(given, str) else [given] for given in value]
                params[name] = [model for models in named for model in models]


def _same_execution(document: Document, name: str, written: dict[str, Any]) -> None:
    """What `execution` says of a search holds for each of its stages."""
    execution = document.data.get("execution")
    if isinstance(execution, dict) and name in execution:
        own = execution.pop(name)
        for stage in written:
            execution.setdefault(stage, own)
            document.places.setdefault(("execution", stage), document.place(("execution", name)))
