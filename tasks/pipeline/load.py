"""From a pipeline file to a checked DAG of stages.

    name: stdlib-code                    stages are {name: {kind: params}}; a param that names a stage is an arrow
    store: .forgeline/store              where artifacts lie; execution side, never identity
    tracking: {project: stdlib-code}
    budget: {hours: 2}                   # what one run may cost; execution side too
    stages: {corpus: {dataset: {...}}}
    execution: {default: {...}, base: {processes: 2}}
    deploy: {schedules: [{cron: "0 3 * * *"}]}       # see tasks/pipeline/deploy.py

Every fault of the file is found in one pass and reported together: file:line, field path, what to do. What `--set` and
the environment put into it: `tasks/pipeline/overrides.py`.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from infra.config_check import check, did_you_mean
from infra.errors import ConfigError, Problem
from infra.execution import Execution
from infra.keys import canonical_json
from infra.yaml_source import Document, dotted, parse_yaml
from tasks.pipeline.dag import NAME, Pipeline, PipelineFile
from tasks.pipeline.deploy_check import check_deployment
from tasks.pipeline.execution import executions
from tasks.pipeline.node import AFTER, StageNode, needs_of
from tasks.pipeline.overrides import apply_override, refuse_environment, with_environment
from tasks.pipeline.references import check_references, check_releases, path_in
from tasks.pipeline.search import SEARCH, Results, Writing, write_out
from tasks.stage import Located, StageParams, identity_params, input_fields, stages

NOTHING_TRIED = Results()
EXECUTION_SIDE = ("store", "tracking", "budget", "execution")
"""Sections that decide how and where a pipeline runs, so that the environment may have a say in them. Not `deploy`,
which Prefect shows to all who may look there.
"""


def load_pipeline(
    path: Path, overrides: list[str] | None = None, store: str | None = None, results: Results = NOTHING_TRIED
) -> Pipeline:
    """Read, override and check a pipeline file. Raises ConfigError listing every fault.

    results: what the candidates of its searches reached, on which the next ones depend.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(str(path), "", f"not UTF-8 text (byte {error.start}); save it as UTF-8")]) from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError([Problem(str(path), "", f"cannot be read: {reason}")]) from error
    document = parse_yaml(text, str(path))
    if not isinstance(document.data, dict):
        raise ConfigError([Problem(f"{path}:1", "", "a pipeline is a mapping with `name` and `stages`")])
    problems: list[Problem] = []
    for override in overrides or []:
        apply_override(document, override, problems)
    pipeline = _check(document, path, store, tuple(overrides or []), problems, results)
    if problems or pipeline is None:
        raise ConfigError(sorted(problems, key=_line))
    return pipeline


def _line(problem: Problem) -> tuple[str, int]:
    name, _, line = problem.where.rpartition(":")
    return (name, int(line)) if line.isdigit() else (problem.where, 0)


def _check(
    document: Document,
    path: Path,
    store: str | None,
    overrides: tuple[str, ...],
    problems: list[Problem],
    results: Results,
) -> Pipeline | None:
    data = document.data
    for section in EXECUTION_SIDE:
        if section in data:
            data[section] = with_environment(data[section], (section,), document, problems)
    for section in data.keys() - set(EXECUTION_SIDE):
        refuse_environment(data[section], (section,), document, problems)
    unset, before = {problem.field for problem in problems}, len(problems)
    searches = write_out(document, problems, results)
    file = check(PipelineFile, data, (), document, problems)
    raw_stages = data.get("stages")
    raw_execution = data.get("execution") or {}
    nodes: dict[str, StageNode] = {}
    if isinstance(raw_stages, dict):
        settings = executions(raw_execution, raw_stages, path.parent, document, problems)
        for name, body in raw_stages.items():
            node = _stage(name, body, path, settings.get(name, Execution()), document, problems)
            if node is not None:
                nodes[name] = _with_optional(node, {model for search in searches for model in search.candidates})
        check_references(nodes, raw_stages, document, problems)
        check_releases(nodes, document, problems)
        nodes = _in_order(nodes, document, problems)
    if file is not None:
        check_deployment(file.deploy, nodes, document, problems)
    # What is wrong with a field because its variable is not set has been said already.
    problems[before:] = _told_once([problem for problem in problems[before:] if problem.field not in unset], searches)
    if file is None or problems:
        return None
    return Pipeline(
        name=file.name,
        description=file.description,
        store=store or file.store,
        tracking=file.tracking,
        stages=nodes,
        text=document.text,
        path=path,
        budget=file.budget,
        overrides=overrides,
        searches=tuple(searches),
        deploy=file.deploy,
        names_store=bool(store) or "store" in data,
    )


def _told_once(problems: list[Problem], searches: list[Writing]) -> list[Problem]:
    """Without the same fault of a search's step in each of the stages it was written out to."""
    searched = {stage: search.name for search in searches for stage in search.stages}
    once: dict[tuple[str, str, str], Problem] = {}
    for problem in problems:
        parts = problem.field.split(".")
        if len(parts) > 1 and parts[1] in searched:
            parts[1] = searched[parts[1]]
        once.setdefault((problem.where, problem.message, ".".join(parts)), problem)
    return list(once.values())


def _stage(
    name: str, body: Any, file: Path, execution: Execution, document: Document, problems: list[Problem]
) -> StageNode | None:
    path = ("stages", name)
    if not NAME.fullmatch(name):
        message = "a stage name has lower-case letters, digits, - and _ only, and at most 100 of them"
        problems.append(Problem(document.place(path), dotted(path), message))
        return None
    if isinstance(body, dict) and SEARCH in body:
        return None  # one that could not be written out, which has been reported
    kinds = [key for key in body if key != AFTER] if isinstance(body, dict) else []
    if len(kinds) != 1:
        message = f"a stage is `{name}: {{kind: params}}` with exactly one kind; kinds: {', '.join(stages())}"
        problems.append(Problem(document.place(path), dotted(path), message))
        return None
    kind, raw = kinds[0], body[kinds[0]]
    if kind not in stages():
        message = f"unknown stage kind; {did_you_mean(kind, stages())}"
        problems.append(Problem(document.place((*path, kind)), dotted((*path, kind)), message))
        return None
    stage = stages()[kind]
    params = check(stage.params, _rooted(raw, stage.params, file.parent), (*path, kind), document, problems)
    if params is None:
        return None
    for fault in stage.check(params, execution) if stage.check else []:
        where = (*path, kind, *fault.path)
        problems.append(Problem(document.place(where), dotted(where), fault.message))
    _check_identity(params, (*path, kind), document, problems)
    inputs = tuple(input_fields(params))
    after = body.get(AFTER)
    after = () if after is None else tuple(after) if isinstance(after, list) else (after,)
    if not all(isinstance(gate, str) for gate in after):
        message = "takes the name of a gate, or a list of names"
        problems.append(Problem(document.place((*path, AFTER)), dotted((*path, AFTER)), message))
        after = ()
    return StageNode(name, stage, params, execution, inputs, needs_of(inputs, after), after)


def _check_identity(
    params: StageParams, path: tuple[str | int, ...], document: Document, problems: list[Problem]
) -> None:
    """A problem for a value no key can be made of: a model's own fields take any number, and NaN is none."""
    try:
        canonical_json(identity_params(params))
    except (TypeError, ValueError) as error:
        place, _, what = str(error).partition(": ")
        field = dotted(path) + place.removeprefix("$")
        where = (*path, *path_in(place.removeprefix("$")))
        problems.append(
            Problem(document.place(where), field, what.replace("has no canonical JSON form", "cannot be used"))
        )


def _with_optional(node: StageNode, candidates: Set[str]) -> StageNode:
    """The stage, which does without candidates that were dropped where it takes a list of them."""
    inputs = (
        replace(item, optional=item.optional or ("[" in item.path and item.stage in candidates)) for item in node.inputs
    )
    return replace(node, inputs=tuple(inputs))


def _rooted(raw: Any, model: type[BaseModel], folder: Path) -> Any:
    """Paths in `Located` fields made relative to the pipeline file instead of to wherever the command was started."""
    if not isinstance(raw, dict):
        return raw
    result = dict(raw)
    for name, info in model.model_fields.items():
        value = raw.get(name)
        if any(isinstance(m, Located) and m.path for m in info.metadata) and isinstance(value, str):
            if not value.startswith(("/", "${", "~")) and "://" not in value:
                result[name] = str((folder / value).resolve())
        elif isinstance(value, list):
            children = _child_models(info.annotation)
            if len(children) == 1:
                result[name] = [_rooted(item, children[0], folder) for item in value]
    return result


def _child_models(annotation: Any) -> list[type[BaseModel]]:
    from infra.config_check import models_in

    return sorted(models_in(annotation), key=lambda m: m.__name__)


def _in_order(nodes: dict[str, StageNode], document: Document, problems: list[Problem]) -> dict[str, StageNode]:
    graph = {name: [n for n in node.needs if n in nodes] for name, node in nodes.items()}
    try:
        return {name: nodes[name] for name in TopologicalSorter(graph).static_order()}
    except CycleError as error:
        loop = list(reversed(error.args[1]))
        place = document.place(("stages", loop[0]))
        message = f"stages need each other in a circle: {' -> '.join(loop)} (each needs the next); remove one arrow"
        problems.append(Problem(place, f"stages.{loop[0]}", message))
        return {}
