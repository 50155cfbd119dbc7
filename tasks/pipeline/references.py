"""What stages name: other stages, gates, refs. All of it can be checked before anything runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from infra.config_check import did_you_mean
from infra.errors import Problem
from infra.refs import is_name
from infra.yaml_source import Document, Path, dotted
from tasks.pipeline.node import AFTER
from tasks.pipeline.split_references import split_fault
from tasks.release.promotion.refs import weights_ref

if TYPE_CHECKING:
    from tasks.pipeline.node import StageNode
    from tasks.stage import InputField

LATEST = re.compile(r"[^/]+/[^/]+/latest")
"""Refs that runs move by themselves, whatever a gate says."""


def check_references(
    nodes: Mapping[str, StageNode], raw_stages: Mapping[str, object], document: Document, problems: list[Problem]
) -> None:
    """Adds to `problems` what is named and is not there, is something else, or cannot be a name.

    nodes: the stages that could be read, among those of `raw_stages`.
    """

    def fault(path: Path, message: str) -> None:
        problems.append(Problem(document.place(path), dotted(path), message))

    for node in nodes.values():
        for gate in node.after:
            if gate not in nodes or not nodes[gate].stage.refuses:
                gates = ", ".join(n.name for n in nodes.values() if n.stage.refuses) or "none"
                fault(
                    ("stages", node.name, AFTER), f"{gate!r} is no stage that can say no; those of this file: {gates}"
                )
        for item in node.inputs:
            path = ("stages", node.name, node.stage.kind, *path_in(item.path))
            given = (
                item.text.removeprefix("ref:") if item.champion else item.ref
            )  # a champion's name is used as it stands
            if given is not None and not is_name(given):
                fault(path, f"{given!r} cannot be the name of a ref: {REF_NAMES}")
            named = item.fallback if item.ref else item.stage
            if named is None:
                continue
            if named not in raw_stages:
                fault(path, f"no stage named {named!r}; {did_you_mean(named, raw_stages)}")
            elif named in nodes and nodes[named].stage.makes not in (types := taken(node, item)):
                made = nodes[named].stage.makes
                fitting = [n.name for n in nodes.values() if n.stage.makes in types and n.name != node.name]
                hint = f"; stages that make one: {', '.join(fitting)}" if fitting else ""
                fault(path, f"{named!r} makes a {made}, but a {' or '.join(types)} is needed here{hint}")
            elif named in nodes and item.trained and getattr(nodes[named].params, "objective", item) is None:
                fault(
                    path,
                    f"the weights of {named!r} were trained for no objective; put a `finetune` stage between, or name "
                    f"what they were trained for: `{nodes[named].stage.kind}: {{objective: ...}}`",
                )
            elif wrong := split_fault(item, nodes):
                fault(path, wrong)


def taken(node: StageNode, item: InputField) -> tuple[str, ...]:
    """The artifact types that an input takes beside the other fields of its stage."""
    return node.params.types_taken(item.field, item.types)


REF_NAMES = "letters, digits, `._-`, in parts of at most 100 joined by `/`, such as my-pipeline/production"


def check_releases(nodes: Mapping[str, StageNode], document: Document, problems: list[Problem]) -> None:
    """Adds to `problems` refs that no release may move: no names, those that runs move, those of another release."""
    moved: dict[str, str] = {}
    for node in nodes.values():
        if node.stage.makes != "release":
            continue
        path, ref = ("stages", node.name, node.stage.kind, "ref"), str(getattr(node.params, "ref", ""))
        for name in [ref, *([weights_ref(ref)] if getattr(node.params, "weights", None) else [])]:
            message = ""
            if not is_name(name):
                message = f"{name!r} cannot be the name of a ref: {REF_NAMES}"
            elif moved_by_runs(name):
                message = (
                    f"{name} is what a stage made last, which every run moves; name another, such as NAME/production"
                )
            elif name in moved:
                message = f"{name} is moved by {moved[name]!r} already; of two releases the last to finish would win"
            if message:
                problems.append(Problem(document.place(path), dotted(path), message))
            moved.setdefault(name, node.name)


def moved_by_runs(name: str) -> bool:
    """Whether a ref is the `latest` of a stage."""
    return LATEST.fullmatch(name) is not None


def path_in(text: str) -> Path:
    """`models[0]` as ("models", 0)."""
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r"[.\[\]]+", text) if part)
